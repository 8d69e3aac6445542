//! Whether WebRTC works here at all: a link from this machine to itself.

use std::time::{Duration, Instant};

use shared::transport::{Flow, LinkEvent, LinkStep, NetEvent, Transport};
use shared::units::PeerId;

use super::Findings;
use crate::failure::{Code, Failure};
use crate::rtc::{RtcConfig, RtcTransport};

/// How long a link from this machine to itself may take to open.
const SELF_LINK_MAX: Duration = Duration::from_secs(10);

/// Opens that link and tells what came of it.
pub(super) async fn self_link(findings: &mut Findings) {
    let began = Instant::now();
    match tokio::time::timeout(SELF_LINK_MAX, open_self_link()).await {
        Ok(true) => {
            let text = format!(
                "UDP sockets and data channels work; a link to itself took {:.1} s",
                began.elapsed().as_secs_f64()
            );
            findings.ok("WebRTC", &text);
        }
        Ok(false) | Err(_) => findings.fail(
            "WebRTC",
            Failure::new(
                Code::Network,
                "this machine cannot open a link even to itself",
                "Let UDP through the firewall, at least between ports above 1023.",
            ),
        ),
    }
}

/// Opens a link between two transports on this machine; whether it came up.
async fn open_self_link() -> bool {
    let new = || {
        RtcTransport::new(RtcConfig {
            loopback: true,
            ..RtcConfig::default()
        })
    };
    let (mut left, mut right) = (new(), new());
    let (left_id, right_id) = (Flow::first(PeerId(1)), Flow::first(PeerId(2)));
    left.link(
        right_id,
        LinkStep::Offer {
            generation: 1,
            relay_only: false,
        },
    );
    let mut open = 0;
    while open < 2 {
        let (event, from_left) = tokio::select! {
            event = left.next_event() => (event, true),
            event = right.next_event() => (event, false),
        };
        let Ok(NetEvent::Link { event, .. }) = event else {
            return false;
        };
        let step = match event {
            LinkEvent::Description { generation, sdp } if from_left => {
                LinkStep::Answer { generation, sdp }
            }
            LinkEvent::Description { generation, sdp } => LinkStep::Accept { generation, sdp },
            LinkEvent::Candidate {
                generation,
                candidate,
            } => LinkStep::Candidate {
                generation,
                candidate,
            },
            LinkEvent::Open { .. } => {
                open += 1;
                continue;
            }
            LinkEvent::Disturbed { .. } | LinkEvent::Resumed { .. } => continue,
            LinkEvent::Down { .. } => return false,
        };
        if from_left {
            right.link(left_id, step);
        } else {
            left.link(right_id, step);
        }
    }
    true
}
