//! A thousand volunteers at one host process, in little time: the long form is the example `crowd`.
//!
//! The host starts with few files allowed, so it must ask the system for more. Bounds are those that a run of any size is
//! to keep; this machine may be busy with other tests meanwhile, so they stand far above what is measured on an idle one.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests are tests: what is not as it should be ends them"
)]

#[path = "../examples/crowd/clients.rs"]
mod clients;
#[path = "../examples/crowd/drive.rs"]
mod drive;
#[allow(dead_code, reason = "other tests use the rest of it")]
mod nats;
#[path = "../examples/crowd/process.rs"]
mod process;

use std::path::Path;
use std::time::Duration;

use drive::{Plan, drive};
use nats::Nats;
use process::{Gateway, Host};
use signaling::descriptors;
use tokio::sync::Mutex;

/// Clients.
const VOLUNTEERS: u32 = 1_000;
/// Slower than that a school that comes at once would wait.
const JOINS_A_SECOND_MIN: f64 = 50.0;
/// How long a relay may take in 99 of 100 cases.
const RELAY_MS_MAX: f64 = 100.0;
/// ... and through a gateway, where four programs share the machine: less than waiting for one keepalive would cost.
const GATEWAY_RELAY_MS_MAX: f64 = 500.0;
/// Memory that a thousand may cost the host, in MB: four times what they do.
const MEGABYTES_MAX: f64 = 100.0;
/// Files that the host is allowed before it asks for more.
const FILES: u32 = 256;
/// One crowd at a time: each measures how long something takes.
static ALONE: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_volunteers_join_fast_stay_connected_and_hear_each_other_at_once() {
    let _alone = ALONE.lock().await;
    // Each client is a file of this process, too.
    descriptors::raise_to(u64::from(VOLUNTEERS) + 512).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_shoal-host"));
    let host = Host::start(program, Some(FILES), None).await.unwrap();
    let before = host.resident_bytes().unwrap();
    let plan = Plan {
        volunteers: VOLUNTEERS,
        relays: 1_000,
        relays_a_second: 100,
        time_max: Duration::from_secs(40),
    };
    let standing = drive(host.address, plan, || host.cpu_seconds())
        .await
        .unwrap();
    let megabytes = host.resident_bytes().unwrap().saturating_sub(before) as f64 / 1e6;
    let found = &standing.measured;
    assert_eq!((found.joined, found.ended), (VOLUNTEERS, 0), "{found:?}");
    assert!(found.joins_a_second >= JOINS_A_SECOND_MIN, "{found:?}");
    assert_eq!(found.relays_arrived, 1_000, "{found:?}");
    assert!(found.relay_ms.p99 < RELAY_MS_MAX, "{found:?}");
    // Everybody was asked and answered, about each second.
    assert!(found.pings_a_second_each > 0.8, "{found:?}");
    assert!(megabytes < MEGABYTES_MAX, "{megabytes} MB: {found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_join_through_a_gateway_and_hear_each_other_at_once() {
    let _alone = ALONE.lock().await;
    let volunteers = 300;
    let nats = Nats::start("").await;
    let program = Path::new(env!("CARGO_BIN_EXE_shoal-host"));
    let host = Host::start(program, None, Some(&nats.url())).await.unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_shoal-gateway"));
    let gateway = Gateway::start(program, &nats.url()).await.unwrap();
    let plan = Plan {
        volunteers,
        relays: 500,
        relays_a_second: 100,
        time_max: Duration::from_secs(40),
    };
    let driven = drive(gateway.address, plan, || host.cpu_seconds()).await;
    let standing = driven.unwrap();
    let found = &standing.measured;
    assert_eq!((found.joined, found.ended), (volunteers, 0), "{found:?}");
    assert_eq!(found.relays_arrived, 500, "{found:?}");
    assert!(found.relay_ms.p99 < GATEWAY_RELAY_MS_MAX, "{found:?}");
}
