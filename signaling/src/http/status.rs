//! What the run looks like, for people and programs: page, JSON, events, metrics, health.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use shared::wire::report::RunReport;

use super::page::{Program, WebLinks, render};
use super::web::checked;
use crate::app::App;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) async fn page(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let report = app.report.borrow().clone();
    let built = app.web.addresses();
    let asset = |name: &str| {
        built
            .and_then(|built| built.assets.get(name))
            .map(String::as_str)
    };
    let links = WebLinks {
        style: asset("style.css").unwrap_or("/style.css"),
        icon: asset("icon.svg").unwrap_or("/icon.svg"),
        program: built.zip(asset("boot.js")).map(|(built, boot)| Program {
            boot,
            page: &built.start,
            module: &built.wasm,
            worker: &built.worker,
        }),
    };
    checked(&headers, HTML, render(&report, &app.link, &links).into())
}

pub(super) async fn style(headers: HeaderMap) -> Response {
    checked(&headers, CSS, include_str!("../../../www/style.css").into())
}

pub(super) async fn icon(headers: HeaderMap) -> Response {
    checked(&headers, SVG, include_str!("../../../www/icon.svg").into())
}

/// Alive at all.
pub(super) async fn health() -> &'static str {
    "ok\n"
}

/// Able to commit.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    let trouble = app.trouble.borrow().clone();
    match trouble {
        None => "ready\n".into_response(),
        Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, trouble).into_response(),
    }
}

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let content_type = HeaderValue::from_static(OPEN_METRICS);
    ([(header::CONTENT_TYPE, content_type)], app.metrics.text()).into_response()
}

pub(super) async fn run(State(app): State<Arc<App>>) -> Json<RunReport> {
    let report = app.report.borrow().clone();
    Json(RunReport::clone(&report))
}

/// One event at once and one a change: what changes from step to step; whoever wants more asks `/api/run`.
pub(super) async fn events(State(app): State<Arc<App>>) -> Response {
    let Ok(permit) = app.followers.clone().try_acquire_owned() else {
        let text = "too many pages follow this run; ask /api/run now and then";
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    let mut report = app.report.clone();
    report.mark_changed();
    let stop = app.stop.clone();
    let changes = stream::unfold(
        (report, stop, permit),
        |(mut report, mut stop, permit)| async {
            tokio::select! {
                changed = report.changed() => changed.ok()?,
                _ = stop.wait_for(|stop| *stop) => return None,
            }
            let event = news(&report.borrow_and_update());
            Some((Ok(event), (report, stop, permit)))
        },
    );
    sse(changes).into_response()
}

fn sse(
    changes: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
) -> impl IntoResponse {
    Sse::new(changes).keep_alive(KeepAlive::default())
}

fn news(report: &RunReport) -> Event {
    let text = serde_json::to_string(&report.news()).expect("a report is plain JSON");
    Event::default().data(text)
}
