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
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > limit_bytes) {
        return (
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("more than {limit_bytes} bytes"),
        )
            .into_response();
    }
    let Ok(_permit) = app.uploads.try_acquire() else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "too many uploads at once; try again",
        )
            .into_response();
    };
    let Some(ticket) = app.tickets.take(app.clock.now(), &text) else {
        return (
            StatusCode::FORBIDDEN,
            "this ticket was used, has expired or never was",
        )
            .into_response();
    };
    let stored = app
        .store
        .put_blob(ticket.held.blob, limit_bytes, body.into_data_stream())
        .await;
    match stored {
        Ok(len_bytes) => {
            tracing::info!(stage = %ticket.held.stage, round = %ticket.held.round, len_bytes, "state stored");
            if app
                .inbox
                .send(Event::Stored { ticket: text })
                .await
                .is_err()
            {
                return (StatusCode::SERVICE_UNAVAILABLE, "the host stops").into_response();
            }
            StatusCode::CREATED.into_response()
        }
        Err(error @ (StoreError::Hash { .. } | StoreError::TooLarge { .. })) => {
            tracing::warn!(%error, "an upload was refused");
            (StatusCode::UNPROCESSABLE_ENTITY, error.to_string()).into_response()
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
            // An error means that the host stops.
            let _ = app.inbox.send(event).await;
            let text =
                "the host's store cannot take it now; the next checkpoint is asked for later";
            (StatusCode::INSUFFICIENT_STORAGE, text).into_response()
        }
    }
}
