//! How others can be reached from this browser: which kinds of addresses a connection to nobody gathers.

use std::cell::RefCell;
use std::rc::Rc;

use futures_util::future::{Either, select};
use shared::transport::IceServer;
use wasm_bindgen::JsCast;
use wasm_bindgen_futures::JsFuture;
use web_sys::{RtcPeerConnection, RtcPeerConnectionIceEvent};

use super::links::configuration;
use super::surroundings::pause;
use crate::js::{Listener, get};
use crate::messages::Reachability;

/// What a browser calls a server that did not answer (WebRTC, `RTCPeerConnectionIceErrorEvent.errorCode`); other numbers
/// are the server's own.
const NO_ANSWER: f64 = 701.0;
/// How long servers may take to answer: those that answer later would hold every link up.
const GATHER_MS: i32 = 2_000;

/// Gathers addresses until there are no more, or the time is up.
pub(super) async fn find_out(servers: &[IceServer]) -> Reachability {
    let made = RtcPeerConnection::new_with_configuration(&configuration(servers, false));
    let Ok(connection) = made else {
        return Reachability::default();
    };
    let found = Rc::new(RefCell::new(Reachability {
        webrtc: true,
        ..Reachability::default()
    }));
    let refused = Rc::new(RefCell::new(Vec::new()));
    let (over, ended) = futures_channel::oneshot::channel::<()>();
    let mut over = Some(over);
    let (heard, failed) = (Rc::clone(&found), Rc::clone(&refused));
    let candidates = Listener::new(&connection, "icecandidate", move |event| {
        let event: RtcPeerConnectionIceEvent = event.unchecked_into();
        match event.candidate() {
            None => drop(over.take()),
            Some(candidate) => note(&mut heard.borrow_mut(), &candidate.candidate()),
        }
    });
    let errors = Listener::new(&connection, "icecandidateerror", move |event| {
        let is_refusal = get(&event, "errorCode")
            .as_f64()
            .is_some_and(|code| code < NO_ANSWER);
        if let (Some(url), true) = (get(&event, "url").as_string(), is_refusal) {
            failed.borrow_mut().push(url);
        }
    });
    drop(connection.create_data_channel("reach"));
    let gathering = async {
        let offer = JsFuture::from(connection.create_offer()).await?;
        JsFuture::from(connection.set_local_description(&offer.unchecked_into())).await?;
        // Dropped when the last one was heard of: an error is what says so.
        let _ = ended.await;
        Ok::<_, wasm_bindgen::JsValue>(())
    };
    let limit = pause(GATHER_MS);
    futures_util::pin_mut!(gathering, limit);
    let outcome = select(gathering, limit).await;
    drop((candidates, errors));
    connection.close();
    let mut found = found.take();
    let urls: Vec<String> = servers
        .iter()
        .flat_map(|server| server.urls.clone())
        .collect();
    found.note_servers(&urls, &refused.take());
    if matches!(outcome, Either::Left((Err(_), _))) {
        found.webrtc = false;
    }
    found
}

/// What a candidate's line says of its kind: `candidate:… typ host …`.
fn note(found: &mut Reachability, candidate: &str) {
    let mut words = candidate.split(' ').skip_while(|word| *word != "typ");
    match words.nth(1) {
        Some("host") => found.host = true,
        Some("srflx") => found.reflexive = true,
        Some("relay") => found.relay = true,
        Some(_) | None => {}
    }
}
