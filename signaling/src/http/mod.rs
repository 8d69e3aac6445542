//! Everything that is asked over HTTP: the page, the run's JSON, metrics, data, the store, and the WebSocket.
//!
//! Routes are listed in [`router`]. Handlers are thin: they read [`App`] and answer; what changes the run goes as an
//! event to the coordinator's task. Every answer carries the same strict headers: nothing is loaded from elsewhere.

mod files;
mod page;
mod range;
mod socket;
mod status;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, put};

use crate::app::App;

const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// All routes of the host.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(status::page))
        .route("/style.css", get(status::style))
        .route("/icon.svg", get(status::icon))
        .route("/healthz", get(status::health))
        .route("/readyz", get(status::ready))
        .route("/metrics", get(status::metrics))
        .route("/api/run", get(status::run))
        .route("/api/run/events", get(status::events))
        .route("/data/{name}", get(files::data))
        .route("/store/blobs/{digest}", get(files::blob))
        .route("/store/manifests/newest.json", get(files::newest_manifest))
        .route(
            "/store/upload/{ticket}",
            put(files::upload).layer(DefaultBodyLimit::disable()),
        )
        .route("/ws", get(socket::open))
        .layer(middleware::from_fn(harden))
        .with_state(app)
}

async fn harden(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whose request it is: the connection's address, or what a trusted proxy says it is.
fn client_address(app: &App, socket: SocketAddr, headers: &HeaderMap) -> IpAddr {
    let forwarded = || {
        let list = headers.get("x-forwarded-for")?.to_str().ok()?;
        list.rsplit(',').next()?.trim().parse().ok()
    };
    let forwarded = app.trust_proxy.then(forwarded).flatten();
    forwarded.unwrap_or(socket.ip())
}
