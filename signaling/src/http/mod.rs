//! Everything that is asked over HTTP: the page, the run's JSON, metrics, data, the store, and the WebSocket.
//!
//! Routes are listed in [`router`]. Handlers are thin: they read [`App`] and answer; what changes the run goes as an
//! event to the coordinator's task. Every answer carries the same strict headers: nothing is loaded from elsewhere.

mod files;
mod page;
mod range;
pub(crate) mod socket;
mod status;
mod texts;
mod web;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post, put};
use axum::serve::{IncomingStream, Listener};
use tokio::sync::watch;

use crate::app::App;

/// What the page may load and do: what comes from this host, and WebAssembly. `ORIGINS` is where the run's WebSocket is:
/// browsers that keep to the second level of the policy don't count it to `'self'`.
const POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; \
                      img-src 'self' data:; font-src 'self'; manifest-src 'self'; connect-src 'self'ORIGINS; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Longest name of a host that is repeated in the policy.
const HOST_CHARS_MAX: usize = 255;

/// All routes of the host.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(status::page))
        .route("/r/{code}", get(status::page))
        .route("/pkg/{*path}", get(web::file))
        .route("/style.css", get(status::style))
        .route("/icon.svg", get(status::icon))
        .route("/healthz", get(status::health))
        .route("/readyz", get(status::ready))
        .route("/metrics", get(status::metrics))
        .route("/api/run", get(status::run))
        .route("/api/run/events", get(status::events))
        .route(
            "/api/generate",
            post(texts::generate).layer(DefaultBodyLimit::max(texts::REQUEST_BYTES_MAX)),
        )
        .route("/data/{name}", get(files::data))
        .route("/store/blobs/{digest}", get(files::blob))
        .route("/store/manifests/newest.json", get(files::newest_manifest))
        .route(
            "/store/upload/{ticket}",
            put(files::upload).layer(DefaultBodyLimit::disable()),
        )
        .route("/ws", get(socket::of_host))
        .layer(middleware::from_fn(harden))
        .with_state(app)
}

/// Serves `router` until `stop` is true.
pub(crate) async fn serve<L>(
    listener: L,
    router: Router,
    mut stop: watch::Receiver<bool>,
) -> std::io::Result<()>
where
    L: Listener<Addr = SocketAddr>,
    SocketAddr: for<'a> Connected<IncomingStream<'a, L>>,
{
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service)
        .with_graceful_shutdown(async move {
            // The sender gone means the same.
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await
}

async fn harden(request: Request, next: Next) -> Response {
    let policy = policy(request.headers());
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // A page of its own process, with fine clocks, that nobody else's page reaches into.
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-embedder-policy"),
            "require-corp",
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("permissions-policy"),
            "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The policy for a page at the host that was asked for.
fn policy(headers: &HeaderMap) -> HeaderValue {
    let is_part = |one: char| one.is_ascii_alphanumeric() || "-._:[]".contains(one);
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .filter(|host| {
            !host.is_empty() && host.len() <= HOST_CHARS_MAX && host.chars().all(is_part)
        });
    let origins = host.map_or_else(String::new, |host| format!(" ws://{host} wss://{host}"));
    HeaderValue::try_from(POLICY.replace("ORIGINS", &origins)).expect("printable ASCII")
}

/// Whose request it is: the connection's address, or what a trusted proxy says it is.
fn client_address(trust_proxy: bool, socket: SocketAddr, headers: &HeaderMap) -> IpAddr {
    let forwarded = || {
        let list = headers.get("x-forwarded-for")?.to_str().ok()?;
        list.rsplit(',').next()?.trim().parse().ok()
    };
    let forwarded = trust_proxy.then(forwarded).flatten();
    forwarded.unwrap_or(socket.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy_at(host: &'static str) -> String {
        let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(host))]);
        policy(&headers).to_str().unwrap().to_owned()
    }

    #[test]
    fn the_policy_lets_the_page_reach_its_host_and_nothing_else() {
        let policy = policy_at("run.example:8080");
        let connect = "connect-src 'self' ws://run.example:8080 wss://run.example:8080;";
        assert!(policy.contains(connect), "{policy}");
        assert!(policy_at("[::1]:80").contains("wss://[::1]:80;"));
        for part in policy.split("; ") {
            let values = part.split_once(' ').map_or("", |(_, values)| values);
            let is_own = |value: &str| {
                ["'self'", "'none'", "'wasm-unsafe-eval'", "data:"].contains(&value)
                    || value.ends_with("//run.example:8080")
            };
            assert!(values.split(' ').all(is_own), "{part}");
        }
    }

    #[test]
    fn a_host_name_adds_nothing_to_the_policy_but_itself() {
        for host in ["a b", "a;script-src *", "a,b", "*", ""] {
            assert!(policy_at(host).contains("connect-src 'self'; "), "{host}");
        }
    }
}
