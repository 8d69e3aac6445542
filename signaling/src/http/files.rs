//! Bytes: the run's tokens, blobs of the store, and uploads into it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use shared::units::Digest;

use super::range::{self, Keep};
use crate::app::{App, Event};
use crate::data::{TOKENIZER_FILE, TRAIN_FILE, VALIDATION_FILE};
use crate::door::UPLOAD_TURN_MAX;
use crate::store::StoreError;

pub(super) async fn data(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    let content_type = match name.as_str() {
        TRAIN_FILE | VALIDATION_FILE => "application/octet-stream",
        TOKENIZER_FILE => "application/json",
        _ => return (StatusCode::NOT_FOUND, "no such file").into_response(),
    };
    let asked = range::requested(&headers);
    let path = format!("data/{}/{name}", app.data.folder);
    let read = app.store.file(&path, asked.clone()).await;
    if name == TOKENIZER_FILE && matches!(read, Err(StoreError::Missing { .. })) {
        let text = "the data came as token shards without a tokenizer; its host can give one with --tokenizer";
        return (StatusCode::NOT_FOUND, text).into_response();
    }
    range::respond(read, asked.is_some(), content_type, Keep::Check)
}

pub(super) async fn blob(
    State(app): State<Arc<App>>,
    Path(digest): Path<String>,
    headers: HeaderMap,
) -> Response {
    let Ok(digest) = digest.parse::<Digest>() else {
        return (
            StatusCode::NOT_FOUND,
            "a blob's name is 64 hexadecimal digits",
        )
            .into_response();
    };
    let asked = range::requested(&headers);
    let read = app.store.blob(digest, asked.clone()).await;
    range::respond(
        read,
        asked.is_some(),
        "application/octet-stream",
        Keep::Forever,
    )
}

/// The newest checkpoint of the history that stands: what `shoal export` reads.
pub(super) async fn newest_manifest(State(app): State<Arc<App>>) -> Response {
    let Some(round) = app.report.borrow().checkpoint_round else {
        let text = "no checkpoint is in the store yet; wait for the first one";
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    let read = app
        .store
        .file(&format!("manifests/{round}.json"), None)
        .await;
    range::respond(read, false, "application/json", Keep::Check)
}

/// Takes one blob for one ticket; its hash must be the one that the ticket was made for.
pub(super) async fn upload(
    State(app): State<Arc<App>>,
    Path(text): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let limit_bytes = app.upload_bytes_max;
    let unknown = (
        StatusCode::FORBIDDEN,
        "this ticket was used, has expired or never was",
    );
    // Whoever has no ticket waits for nothing.
    if !app.tickets.is_good(app.clock.now(), &text) {
        return unknown.into_response();
    }
    let turn = tokio::time::timeout(UPLOAD_TURN_MAX, app.uploads.acquire()).await;
    let Ok(Ok(_permit)) = turn else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "too many uploads at once; try again",
        )
            .into_response();
    };
    let Some(ticket) = app.tickets.take(app.clock.now(), &text) else {
        return unknown.into_response();
    };
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let stored = if announced.is_some_and(|bytes| bytes > limit_bytes) {
        Err(StoreError::TooLarge { limit_bytes })
    } else {
        let blobs = body.into_data_stream();
        let (store, blob) = (&app.store, ticket.held.blob);
        store.put_blob(blob, limit_bytes, blobs).await
    };
    match stored {
        Ok(len_bytes) => {
            tracing::info!(stage = %ticket.held.stage, round = %ticket.held.round, len_bytes, "state stored");
            tell(
                &app,
                Event::Stored { ticket: text },
                StatusCode::CREATED,
                "",
            )
            .await
        }
        Err(error @ (StoreError::Hash { .. } | StoreError::TooLarge { .. })) => {
            tracing::warn!(%error, "an upload was refused");
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            let event = Event::NotHeld { ticket: text };
            tell(&app, event, status, &error.to_string()).await
        }
        Err(error @ StoreError::Interrupted { .. }) => {
            tracing::info!(%error, "an upload may come again");
            app.tickets.add(app.clock.now(), text, ticket);
            (StatusCode::BAD_REQUEST, error.to_string()).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "an upload failed");
            let event = Event::NotStored {
                ticket: text,
                reason: error.to_string(),
            };
            let text =
                "the host's store cannot take it now; the next checkpoint is asked for later";
            tell(&app, event, StatusCode::INSUFFICIENT_STORAGE, text).await
        }
    }
}

/// Tells the coordinator how an upload ended, then whoever sent it.
async fn tell(app: &App, event: Event, status: StatusCode, text: &str) -> Response {
    if app.entrance.inbox.send(event).await.is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the host stops").into_response();
    }
    (status, text.to_owned()).into_response()
}
