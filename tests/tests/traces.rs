//! What volunteers of a real run write with `--trace`: what each computed, sent, got and waited for, and when.

use std::collections::BTreeSet;

use tests::community::{Community, ROUND_WAIT_MAX, Small};
use tests::process::Signal;
use tests::traces::{Span, Trace, follow_each_other};

/// Slots of the spans of that name.
fn slots(spans: &[Span], name: &str) -> Vec<(u64, u64, u64)> {
    let named = spans.iter().filter(|span| span.name == name);
    named.filter_map(|span| span.slot).collect()
}

#[test]
fn a_run_can_be_followed_from_its_volunteers_traces() {
    let small = Small {
        round_steps: 5,
        ..Small::default()
    };
    let mut community = Community::gather(&small, &[]).expect("a host");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(format!("{name}.json"));
    for name in ["anchovy", "herring"] {
        let path = path(name);
        let path = path.to_str().expect("a name of letters");
        let joined = community.join_with(name, &["--trace", path]);
        joined.expect("it starts");
    }
    let run = community
        .host
        .wait_until("four commits", ROUND_WAIT_MAX, |run| {
            run["round"].as_u64() >= Some(4)
        });
    run.expect("the run goes on");
    // One is killed, the other one leaves at once.
    let mut herring = community.volunteers.pop().expect("it was started");
    herring.kill().expect("it runs");
    let mut anchovy = community.volunteers.pop().expect("it was started");
    for answer in ["finish", "end"] {
        anchovy.signal(Signal::INT).expect("it runs");
        let told = anchovy.wait_for(answer, ROUND_WAIT_MAX, |event| event["event"] == answer);
        told.expect("it answers");
    }
    anchovy.wait_end(ROUND_WAIT_MAX).expect("it ends");

    let whole = std::fs::read_to_string(path("anchovy")).expect("it is there");
    assert!(whole.ends_with("]\n"), "it was closed");
    let traces = ["anchovy", "herring"].map(|name| {
        let trace = Trace::read(&path(name)).expect("a trace");
        assert_eq!(trace.name(), Some(name));
        trace
    });
    for trace in &traces {
        check_device(trace);
    }
    let [one, other] = &traces;
    // Who is the head is not said, and may change between two rounds.
    for name in ["forward", "backward"] {
        let pairs = [(one, other), (other, one)].map(|(from, to)| {
            let received = to.frames("received", name);
            let sent = from.frames("sent", name).into_iter();
            sent.filter_map(move |(slot, began)| Some((began, *received.get(&slot)?)))
        });
        let both: Vec<(u64, u64)> = pairs.into_iter().flatten().collect();
        // Two rounds of five steps of four microbatches: what who is killed wrote last, its disk does not have.
        assert!(both.len() >= 40, "{} {name}", both.len());
        // One machine's clock: a second is more than its processes read it apart.
        let close = |(sent, got): &(u64, u64)| *got + 1_000_000 > *sent && *got < *sent + 9_000_000;
        assert!(both.iter().all(close), "{both:?}");
    }
    for trace in &traces {
        let spans = trace.spans("wait").expect("spans");
        let waits: BTreeSet<String> = spans.into_iter().map(|span| span.name).collect();
        // A head waits for gradients, the last seat for input.
        for (sent, waited) in [("forward", "gradient"), ("backward", "input")] {
            // A round's, at least: who has just become the head has waited for nothing.
            let is_due = trace.frames("sent", sent).len() >= 20;
            assert!(!is_due || waits.contains(waited), "{waited} in {waits:?}");
        }
    }
    let all = Trace::join(traces.to_vec()).text();
    let all: Vec<serde_json::Value> = serde_json::from_str(&all).expect("JSON");
    assert_eq!(all.len(), one.events.len() + other.events.len());
}

/// A device does one thing at a time, and each forward of a round that ended is followed by its backward.
fn check_device(trace: &Trace) {
    let spans = trace.spans("compute").expect("spans");
    let waits = trace.spans("wait").expect("spans");
    let mut device: Vec<Span> = spans.iter().chain(&waits).cloned().collect();
    device.sort_by_key(|span| (span.began_us, span.ended_us));
    follow_each_other(&device).expect("one thing at a time");
    let (forwards, backwards) = (slots(&spans, "forward"), slots(&spans, "backward"));
    let first_round = |slots: &[(u64, u64, u64)]| -> Vec<_> {
        slots
            .iter()
            .filter(|(round, ..)| *round == 0)
            .copied()
            .collect()
    };
    // Five steps of four microbatches, in number order.
    let expected: Vec<_> = (0..20).map(|number| (0, number / 4, number % 4)).collect();
    assert_eq!(first_round(&forwards), expected);
    assert_eq!(first_round(&backwards), expected);
    for slot in &backwards {
        assert!(forwards.contains(slot), "{slot:?} went back before it came");
    }
    assert!(spans.iter().any(|span| span.name == "update"));
}
