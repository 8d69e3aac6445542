//! Both directions survive their JSON; what the page keeps may lack what a later version asks for.

use shared::units::{PeerId, Round, StageRange};

use super::*;

fn round_trip<T>(message: T)
where
    T: Serialize + for<'a> Deserialize<'a> + PartialEq + std::fmt::Debug,
{
    let text = serde_json::to_string(&message).expect("messages are JSON");
    let read: T = serde_json::from_str(&text).expect("what was written can be read");
    assert_eq!(read, message, "{text}");
}

fn at() -> LinkId {
    LinkId {
        flow: Flow {
            peer: PeerId(7),
            number: 1,
        },
        number: 2,
    }
}

#[test]
fn what_the_page_says_survives_its_json() {
    let link = "https://host.example/".to_owned();
    let settings = Settings {
        throttle_percent: 50,
        day_bytes_max: Some(1 << 33),
        invite: Some("K7".to_owned()),
        ..Settings::default()
    };
    for message in [
        ToWorker::Preflight {
            link: link.clone(),
            settings: settings.clone(),
        },
        ToWorker::Start {
            link,
            settings: settings.clone(),
        },
        ToWorker::Pause,
        ToWorker::Resume,
        ToWorker::Finish,
        ToWorker::Stop,
        ToWorker::Settings { settings },
        ToWorker::Visibility { hidden: true },
        ToWorker::Power { on_mains: false },
        ToWorker::PageHide { may_return: true },
        ToWorker::Rtc(Rtc {
            at: at(),
            what: LinkEvent::Open {
                generation: 3,
                local_fingerprint: "AA".to_owned(),
                remote_fingerprint: "BB".to_owned(),
                relayed: true,
            },
        }),
        ToWorker::Sent {
            at: at(),
            channel: Channel::Tensors,
            sent_bytes: u64::MAX >> 11,
        },
        ToWorker::Reached(Reachability {
            webrtc: true,
            silent: vec!["stun:a.example".to_owned()],
            ..Reachability::default()
        }),
    ] {
        round_trip(message);
    }
}

#[test]
fn what_the_worker_says_survives_its_json() {
    let seat = Seat {
        stages: StageRange { first: 2, end: 4 },
        of: 4,
        pipeline: 0,
        previous: Some(Neighbour {
            peer: PeerId(1),
            relayed: Some(false),
        }),
        next: None,
        steps: 3,
    };
    let snapshot = Snapshot {
        phase: Phase::Training,
        seat: Some(seat),
        round: Some(Round(21)),
        loss: Some(2.5),
        measured_percent: Some(49.5),
        accepted: Accepted {
            microbatches: 412,
            stages: vec![StageRange { first: 2, end: 4 }],
            first_round: Some(Round(17)),
            last_round: Some(Round(21)),
        },
        ..Snapshot::default()
    };
    let preflight = Preflight {
        webgpu: Some(WebGpu::Absent {
            reason: NoWebGpu::NeedsHttps,
        }),
        verdict: Some(Verdict::CanHelp { stages: 2, of: 4 }),
        ..Preflight::default()
    };
    for message in [
        ToPage::Ready {
            takes_channels: true,
        },
        ToPage::ChannelsOpen(at()),
        ToPage::ChannelClosed(at()),
        ToPage::Snapshot(Box::new(snapshot)),
        ToPage::Preflight(Box::new(preflight)),
        ToPage::Ended(Ended::Refused {
            code: RefuseCode::Invite,
            text: "an invitation is needed".to_owned(),
            remedy: "Ask whoever hosts the run.".to_owned(),
        }),
        ToPage::Ended(Ended::Finished),
        ToPage::Broken(Broken {
            module: "worker".to_owned(),
            report: "worker.rs:1".to_owned(),
        }),
        ToPage::Rtc(Rtc {
            at: at(),
            what: LinkStep::Answer {
                generation: 1,
                sdp: "v=0".to_owned(),
            },
        }),
        ToPage::IceServers {
            servers: vec![IceServer {
                urls: vec!["stun:a.example".to_owned()],
                username: None,
                credential: None,
            }],
            relay_only: true,
        },
        ToPage::Reach {
            servers: Vec::new(),
        },
    ] {
        round_trip(message);
    }
}

#[test]
fn settings_that_an_older_page_kept_are_read_with_defaults() {
    let kept: Settings = serde_json::from_str(r#"{"throttle_percent":25}"#).expect("settings");
    assert_eq!(kept.throttle_percent, 25);
    assert_eq!(kept.device, DeviceWish::Auto);
}

#[test]
fn every_channel_has_its_number_and_no_other_number_a_channel() {
    for channel in [Channel::Control, Channel::Tensors] {
        assert_eq!(channel_of(channel_number(channel)), Some(channel));
    }
    assert_eq!(channel_of(2), None);
}
