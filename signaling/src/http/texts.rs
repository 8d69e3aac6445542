//! `POST /api/generate`: a prompt in, the model's words out, as the volunteers write them.
//!
//! The answer is a stream of server-sent events, a [`GenerateNews`] each. Whoever closes it wants no more, and the text ends.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use shared::coordinator::texts::{TextNews, Wanted};
use shared::limits::{PROMPT_BYTES_MAX, TEXT_TOKENS_MAX};
use shared::wire::generate::{GenerateNews, GenerateRequest, Sampling};
use tokio::sync::{mpsc, watch};

use crate::app::{self, App};
use crate::texts::{Growing, Permit, TextError, Texts};

/// Longest body that is read: a prompt, in JSON that escapes each of its bytes, and a few numbers.
pub(super) const REQUEST_BYTES_MAX: usize = 6 * PROMPT_BYTES_MAX + 1_024;
/// News that wait for somebody who reads slowly: all that there can be of a text.
const NEWS_MAX: usize = TEXT_TOKENS_MAX as usize + 1;

pub(super) async fn generate(
    State(app): State<Arc<App>>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Json(request): Json<GenerateRequest>,
) -> Response {
    let address = super::client_address(app.entrance.trust_proxy, address, &headers);
    let inbox = app.entrance.inbox.clone();
    let now = app.entrance.clock.now();
    // First: to read a prompt is work, too.
    let permit = app.texts.clone().admit(now, address, inbox);
    let asked = permit.and_then(|permit| Ok((wanted(&app.texts, request)?, permit)));
    let (wanted, permit) = match asked {
        Ok(asked) => asked,
        Err(error) => return (status_of(&error), error.to_string()).into_response(),
    };
    let (sender, news) = mpsc::channel(NEWS_MAX);
    let growing = Growing::new(&app.texts, wanted.tokens.clone());
    let event = app::Event::Wanted {
        number: permit.number,
        wanted,
        news: sender,
    };
    if app.entrance.inbox.send(event).await.is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the host is stopping").into_response();
    }
    let told = told(Told {
        texts: app.texts.clone(),
        stop: app.stop.clone(),
        _permit: permit,
        news,
        growing,
        over: None,
    });
    Sse::new(told)
        .keep_alive(KeepAlive::default())
        .into_response()
}

/// Parses what is asked for, once.
fn wanted(texts: &Texts, request: GenerateRequest) -> Result<Wanted, TextError> {
    let GenerateRequest {
        prompt,
        tokens,
        temperature,
        top_p,
        seed,
    } = request;
    if !(1..=TEXT_TOKENS_MAX).contains(&tokens) {
        return Err(TextError::Count { tokens });
    }
    let seed = seed.or_else(|| getrandom::u64().ok()).unwrap_or_default();
    let sampling = Sampling {
        temperature,
        top_p,
        seed,
    };
    if !sampling.is_sound() {
        return Err(TextError::Sampling);
    }
    Ok(Wanted {
        tokens: texts.encode(&prompt)?,
        count: tokens,
        sampling,
    })
}

fn status_of(error: &TextError) -> StatusCode {
    match error {
        TextError::NoTokenizer => StatusCode::NOT_IMPLEMENTED,
        TextError::TooMany | TextError::TooOften => StatusCode::TOO_MANY_REQUESTS,
        TextError::Empty
        | TextError::TooLong
        | TextError::Count { .. }
        | TextError::Sampling
        | TextError::Tokenizer { .. } => StatusCode::BAD_REQUEST,
    }
}

/// A text on its way to whoever asked.
struct Told {
    texts: Arc<Texts>,
    stop: watch::Receiver<bool>,
    _permit: Permit,
    news: mpsc::Receiver<TextNews>,
    growing: Growing,
    /// The last word, once the last characters are told.
    over: Option<GenerateNews>,
}

fn told(told: Told) -> impl Stream<Item = Result<Event, Infallible>> + Send + 'static {
    stream::unfold(Some(told), |told| async {
        let mut told = told?;
        if let Some(last) = told.over.take() {
            return Some((Ok(event(&last)), None));
        }
        loop {
            let news = tokio::select! {
                news = told.news.recv() => news?,
                _ = told.stop.wait_for(|stop| *stop) => return None,
            };
            let (text, last) = match news {
                TextNews::Token(token) => (told.growing.push(&told.texts, token), None),
                TextNews::Over => {
                    let tokens = told.growing.written();
                    let over = GenerateNews::Over { tokens };
                    (told.growing.rest(&told.texts), Some(over))
                }
                TextNews::GivenUp(reason) => (
                    told.growing.rest(&told.texts),
                    Some(GenerateNews::GivenUp { reason }),
                ),
            };
            match (text.is_empty(), last) {
                (true, None) => {}
                (true, Some(last)) => return Some((Ok(event(&last)), None)),
                (false, last) => {
                    told.over = last;
                    let event = event(&GenerateNews::Text { text });
                    return Some((Ok(event), Some(told)));
                }
            }
        }
    })
}

fn event(news: &GenerateNews) -> Event {
    let text = serde_json::to_string(news).expect("news are plain JSON");
    Event::default().data(text)
}
