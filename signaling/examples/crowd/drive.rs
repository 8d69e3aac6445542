//! Drives a crowd against one host: everybody joins, then relays go to and fro while all answer pings. Measures.
//!
//! Bounded in everything: clients, joins under way at a time, relays, and seconds. What is told is what arrived: a
//! client that was refused, or whose connection ended, is counted and named, never left out. Begin with [`drive`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use shared::units::PeerId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::clients::{Crowd, News, take_part};

/// Joins under way at a time.
const JOINING_MAX: usize = 32;
/// How long relays count apart: all have just come in at once, and get seats, copies to make and reasons to wait.
const SETTLING: Duration = Duration::from_secs(3);
/// How long the host may take to carry the last relays.
const LAST_RELAYS_MAX: Duration = Duration::from_secs(10);
/// Reasons that are told of connections that ended.
const REASONS_MAX: usize = 5;

/// What a crowd is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Clients.
    pub(crate) volunteers: u32,
    /// Relays in all.
    pub(crate) relays: u32,
    /// ... and a second.
    pub(crate) relays_a_second: u32,
    /// Most time that all of it may take.
    pub(crate) time_max: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measured {
    /// Clients that were welcomed.
    pub(crate) joined: u32,
    /// Clients that were welcomed a second, from the first packet of the first to the last welcome.
    pub(crate) joins_a_second: f64,
    /// From the first packet to the welcome, in milliseconds.
    pub(crate) join_ms: Quantiles,
    /// Relays that were sent.
    pub(crate) relays_sent: u32,
    /// Relays that arrived.
    pub(crate) relays_arrived: usize,
    /// From one client to the other, in milliseconds, while all stand connected and answer pings.
    pub(crate) relay_ms: Quantiles,
    /// The same in the first seconds after the last join.
    pub(crate) relay_ms_settling: Quantiles,
    /// Pings that were answered.
    pub(crate) pings: u64,
    /// ... while relays went to and fro, each second and client.
    pub(crate) pings_a_second_each: f64,
    /// Connections that ended.
    pub(crate) ended: u32,
    /// ... and some reasons.
    pub(crate) reasons: BTreeMap<String, u32>,
    /// Seconds of the relays.
    pub(crate) relay_seconds: f64,
    /// CPU seconds a second that the host took meanwhile.
    pub(crate) host_cpu_share: f64,
}

/// How long something took, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Quantiles {
    /// For half of them, at most.
    pub(crate) p50: f64,
    /// For 99 of 100, at most.
    pub(crate) p99: f64,
    /// For all of them, at most.
    pub(crate) max: f64,
}

impl Quantiles {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let rank = (percent * times.len()).div_ceil(100).max(1);
            times
                .get(rank - 1)
                .map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
        };
        Self {
            p50: at(50),
            p99: at(99),
            max: at(100),
        }
    }
}

/// A client that was welcomed.
struct Member {
    peer: PeerId,
    orders: mpsc::Sender<PeerId>,
}

/// What was heard so far.
#[derive(Default)]
struct Heard {
    members: Vec<Member>,
    joins: Vec<Duration>,
    relays: Vec<Duration>,
    settling: Vec<Duration>,
    settled: bool,
    pings: u64,
    ended: u32,
    reasons: BTreeMap<String, u32>,
}

impl Heard {
    /// Relays that arrived.
    fn arrived(&self) -> usize {
        self.relays.len() + self.settling.len()
    }

    fn take(&mut self, news: News) {
        match news {
            News::Joined { peer, orders, took } => {
                self.members.push(Member { peer, orders });
                self.joins.push(took);
            }
            News::Relayed(took) if self.settled => self.relays.push(took),
            News::Relayed(took) => self.settling.push(took),
            News::Pinged => self.pings += 1,
            News::Ended(reason) => {
                self.ended += 1;
                if self.reasons.len() < REASONS_MAX || self.reasons.contains_key(&reason) {
                    *self.reasons.entry(reason).or_default() += 1;
                }
            }
        }
    }
}

/// A crowd that stands connected; its connections end with it.
pub(crate) struct Standing {
    /// What was measured.
    pub(crate) measured: Measured,
    _clients: JoinSet<()>,
}

/// Lets a crowd join `host` and relay; `cpu` tells the CPU seconds that the host took so far. `Err` says what took too
/// long.
pub(crate) async fn drive(
    host: SocketAddr,
    plan: Plan,
    cpu: impl Fn() -> f64,
) -> Result<Standing, String> {
    let (sender, mut news) = mpsc::unbounded_channel();
    let crowd = Arc::new(Crowd::new(host, sender));
    let (mut clients, mut heard) = (JoinSet::new(), Heard::default());
    let work = async {
        let began = Instant::now();
        let mut begun = 0;
        loop {
            let settled = heard.members.len() + heard.ended as usize;
            while begun < plan.volunteers && begun as usize - settled < JOINING_MAX {
                clients.spawn(take_part(crowd.clone(), begun));
                begun += 1;
            }
            if settled >= plan.volunteers as usize {
                break;
            }
            heard.take(news.recv().await.expect("the crowd keeps a sender"));
        }
        let join_seconds = began.elapsed().as_secs_f64();
        let joined = heard.members.len();
        let (began, pings, cpu_before) = (Instant::now(), heard.pings, cpu());
        let sent = relay(plan, &mut heard, &mut news).await;
        let relay_seconds = began.elapsed().as_secs_f64();
        let pinged = (heard.pings - pings) as f64;
        Measured {
            joined: u32::try_from(joined).expect("as many as the plan says"),
            joins_a_second: joined as f64 / join_seconds,
            join_ms: Quantiles::of(std::mem::take(&mut heard.joins)),
            relays_sent: sent,
            relays_arrived: heard.arrived(),
            relay_ms: Quantiles::of(std::mem::take(&mut heard.relays)),
            relay_ms_settling: Quantiles::of(std::mem::take(&mut heard.settling)),
            pings: heard.pings,
            pings_a_second_each: pinged / relay_seconds / joined.max(1) as f64,
            ended: heard.ended,
            reasons: std::mem::take(&mut heard.reasons),
            relay_seconds,
            host_cpu_share: (cpu() - cpu_before) / relay_seconds,
        }
    };
    let measured = timeout(plan.time_max, work)
        .await
        .map_err(|_| format!("not done within {:?}", plan.time_max))?;
    Ok(Standing {
        measured,
        _clients: clients,
    })
}

/// Relays between pairs all over the crowd, at the plan's rate; how many were sent.
async fn relay(plan: Plan, heard: &mut Heard, news: &mut mpsc::UnboundedReceiver<News>) -> u32 {
    let count = heard.members.len();
    if count < 2 {
        return 0;
    }
    let mut ticks = interval(Duration::from_secs(1) / plan.relays_a_second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut sent, began) = (0, Instant::now());
    while sent < plan.relays {
        heard.settled |= began.elapsed() > SETTLING;
        tokio::select! {
            _ = ticks.tick() => {
                // Two strides without a common divisor reach all of them, and never the sender itself.
                let from = (sent as usize * 7_919) % count;
                let to = (from + 1 + (sent as usize * 104_729) % (count - 1)) % count;
                let to = heard.members[to].peer;
                // A client that takes no orders has ended, which is counted.
                if heard.members[from].orders.try_send(to).is_ok() {
                    sent += 1;
                }
            }
            Some(one) = news.recv() => heard.take(one),
        }
    }
    let rest = async {
        while heard.arrived() < sent as usize {
            heard.take(news.recv().await.expect("the crowd keeps a sender"));
        }
    };
    // What has not arrived by then is missing from the count.
    let _ = timeout(LAST_RELAYS_MAX, rest).await;
    sent
}
