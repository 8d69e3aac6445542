//! What the page and its worker say to each other: the types that both modules share.
//!
//! The **page** is the browser's main thread: it draws, and holds the peer connections, which a worker cannot. The
//! **worker** is the volunteer: driver, host connection, files, compute, storage. What the page tells is
//! a [`ToWorker`], what it is told a [`ToPage`]; both cross as JSON text. Only what concerns data channels crosses
//! as a [`Parcel`]: a JavaScript array `[peer, flow, link, channel, load]` whose load is transferred, not copied. Where
//! the browser lets a worker have data channels, it is the channel itself, once; elsewhere each message.
//!
//! The page starts a second worker for the **device**, on the first one's word ([`ToPage::OpenDevice`]), and joins the
//! two by a port.
//!
//! The page's side of the links and of the worker itself is `volunteer`: a user interface needs
//! [`Settings`], the commands of [`ToWorker`], [`Snapshot`], [`Preflight`] and [`Ended`], nothing of [`Rtc`].
//!
//! Invariant: a snapshot is whole. Whoever draws keeps the newest one and needs none of those before it.

mod reach;
mod snapshot;

use serde::{Deserialize, Serialize};
use shared::transport::{Channel, Flow, IceServer, LinkEvent, LinkStep};
use shared::wire::signal::RefuseCode;

pub use reach::Reachability;
pub use snapshot::{Accepted, Neighbour, Phase, Rates, Seat, Snapshot, Traffic, ranges};

/// Which processor a person lends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceWish {
    /// The GPU if the browser gives a hardware one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// WebGPU, even where the CPU computes it (SwiftShader): slow, for tests of the GPU's path.
    WebGpu,
}

/// What a person decides about lending. Kept by the page (in `localStorage`), told to the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// What to call this volunteer on the run's page; empty for a name made of its key.
    pub name: String,
    /// Share of the time that the device works, in percent, 10 to 100.
    pub throttle_percent: u8,
    /// Memory to lend, in bytes; `None` for a careful default.
    pub memory_bytes: Option<u64>,
    /// Which processor.
    pub device: DeviceWish,
    /// Whether only relayed links are made, so that no other volunteer learns this machine's address.
    pub relay_only: bool,
    /// Whether to rest while the machine runs on battery, where the browser tells.
    pub only_on_mains: bool,
    /// Most bytes a day, sent and received together; `None` for no cap. Reaching it rests until midnight (UTC).
    pub day_bytes_max: Option<u64>,
    /// An invitation, where the run asks for one.
    pub invite: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: String::new(),
            throttle_percent: 100,
            memory_bytes: None,
            device: DeviceWish::default(),
            relay_only: false,
            only_on_mains: false,
            day_bytes_max: None,
            invite: None,
        }
    }
}

/// From the page to the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWorker {
    /// Look at this machine and at the run, without taking part. Answered by [`ToPage::Preflight`], several
    /// times as more is known.
    Preflight {
        /// The host's address, with a slash at its end.
        link: String,
        /// What the person lends.
        settings: Settings,
    },
    /// Take part. What a preflight made ready is used.
    Start {
        /// The host's address, with a slash at its end.
        link: String,
        /// What the person lends.
        settings: Settings,
    },
    /// Rest: the seat is given up as in `finish`, the connection stays.
    Pause,
    /// Work again.
    Resume,
    /// Leave after this round's commit, without loss.
    Finish,
    /// Leave now: no GPU work after the microbatch under way.
    Stop,
    /// The person changed something. A new throttle acts at once; `device` and `relay_only` at the next start.
    Settings {
        /// All settings, as they are now.
        settings: Settings,
    },
    /// The page was hidden or shown.
    Visibility {
        /// Whether it is hidden now.
        hidden: bool,
    },
    /// What the browser tells of the machine's power; not told at all where it does not.
    Power {
        /// Whether it runs on mains.
        on_mains: bool,
    },
    /// The page goes away: a reload, a closed tab, a page put aside. No browser tells which.
    PageHide {
        /// Whether it would contribute again if it came back: then its seat is kept for a moment.
        may_return: bool,
    },
    /// Of a peer connection.
    Rtc(Rtc<LinkEvent>),
    /// How far a data channel has got.
    Sent {
        /// Whose channel.
        at: LinkId,
        /// Which.
        channel: Channel,
        /// Bytes that the browser has taken over and sent, since the channel opened.
        sent_bytes: u64,
    },
    /// What the page found out about reaching others; asked for by [`ToPage::Reach`].
    Reached(Reachability),
    /// A device's worker did not start, or broke.
    DeviceFailed {
        /// Which: its number in [`ToPage::OpenDevice`].
        number: u32,
        /// What to copy into a report.
        reason: String,
    },
}

/// From the worker to the page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToPage {
    /// The module runs and listens.
    Ready {
        /// Whether data channels can be handed to it.
        takes_channels: bool,
    },
    /// How things stand: a few times a second while something changes.
    Snapshot(Box<Snapshot>),
    /// What is known so far about helping from here.
    Preflight(Box<Preflight>),
    /// It is over; the worker may be ended. The page closes what connections are left.
    Ended(Ended),
    /// Something broke in the worker's module, which runs no more. The seat was given up.
    Broken(Broken),
    /// A step for a peer connection.
    Rtc(Rtc<LinkStep>),
    /// Both channels of a connection, which the worker has, are open.
    ChannelsOpen(LinkId),
    /// A channel of a connection, which the worker has, is closed.
    ChannelClosed(LinkId),
    /// ICE servers for connections that are made from now on.
    IceServers {
        /// With credentials that expire.
        servers: Vec<IceServer>,
        /// Whether only relayed connections are made.
        relay_only: bool,
    },
    /// Start a device's worker of this number, and hand it the port that comes with the message.
    OpenDevice(u32),
    /// End that worker at once, whatever it does.
    CloseDevice(u32),
    /// Find out how this browser reaches others. Answered by [`ToWorker::Reached`].
    Reach {
        /// What to try with; a run without any leaves local addresses.
        servers: Vec<IceServer>,
    },
}

/// What the volunteer's worker is called.
pub const VOLUNTEER: &str = "volunteer";
/// What a device's worker is called, which tells the module what it is.
pub const DEVICE: &str = "device";

/// From a device's worker to the page. With the volunteer's it speaks by the port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromDevice {
    /// The module runs, and can be given the port.
    Listening,
    /// It broke and runs no more: what to copy into a report.
    Broken(String),
}

/// One try of a connection: each has its own number, so that late news of an older one are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LinkId {
    /// Which connection, to whom.
    pub flow: Flow,
    /// Counts the connections that this worker asked for.
    pub number: u32,
}

/// A step or an event of one connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rtc<T> {
    /// Which connection.
    pub at: LinkId,
    /// What to do, or what happened.
    pub what: T,
}

/// A message of a data channel (an `ArrayBuffer`), or the channel, on its way between page and worker. Not JSON; see
/// the module's page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel<T> {
    /// Which connection.
    pub at: LinkId,
    /// Which of its channels.
    pub channel: Channel,
    /// What is transferred.
    pub load: T,
}

/// The number that stands for a channel in a [`Parcel`].
#[must_use]
pub fn channel_number(channel: Channel) -> u8 {
    match channel {
        Channel::Control => 0,
        Channel::Tensors => 1,
    }
}

/// The channel that [`channel_number`] means.
#[must_use]
pub fn channel_of(number: u8) -> Option<Channel> {
    match number {
        0 => Some(Channel::Control),
        1 => Some(Channel::Tensors),
        _ => None,
    }
}

/// What is known about helping from here. Fields fill up one after the other; `verdict` comes last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Preflight {
    /// What WebGPU says, whether it is used or not.
    pub webgpu: Option<WebGpu>,
    /// What would compute, in words: `WebGPU`, `CPU (SIMD)`.
    pub device: Option<String>,
    /// Memory that would be lent, in bytes.
    pub memory_bytes: Option<u64>,
    /// Microseconds that forward and backward of one block of this run take for one sequence.
    pub block_us: Option<u64>,
    /// Microseconds that deriving the run's fixed numbers from its seed took here.
    pub derive_us: Option<u64>,
    /// Hash of what this browser derives from the run's seed, 64 hexadecimal digits; the host compares it
    /// when the volunteer joins.
    pub seed_hash: Option<String>,
    /// How others can be reached.
    pub reach: Option<Reachability>,
    /// What it would cost.
    pub cost: Option<Cost>,
    /// What would come of it.
    pub verdict: Option<Verdict>,
}

/// What this browser says about WebGPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WebGpu {
    /// There is an adapter.
    Adapter {
        /// Vendor, architecture and description, as far as the browser tells.
        name: String,
        /// Whether the CPU computes what it is asked: slower than the CPU by itself, so never a default.
        software: bool,
        /// Whether shaders compute in f16. The wire's format does not depend on it.
        shader_f16: bool,
        /// Largest buffer that a shader reads, in bytes: one tensor must fit.
        buffer_bytes_max: u64,
    },
    /// There is none.
    Absent {
        /// Why, in words.
        reason: NoWebGpu,
    },
}

/// Why there is no WebGPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoWebGpu {
    /// The page came over plain http: browsers offer it over https and on localhost only.
    NeedsHttps,
    /// This browser does not know WebGPU, or it is switched off.
    NotOffered,
    /// The browser knows WebGPU, but gives no adapter: none fits, or it was blocked.
    NoAdapter,
    /// There is an adapter without timestamp queries, which what computes here cannot do without.
    NoTimestamps,
}

/// What lending costs, estimated for the seat that this machine would get alone beside the others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Bytes sent an hour, copies of state included.
    pub up_bytes_hour: f64,
    /// Bytes received an hour.
    pub down_bytes_hour: f64,
    /// Bytes of state to fetch at first.
    pub first_bytes: f64,
}

/// What would come of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Verdict {
    /// This machine can help.
    CanHelp {
        /// How many stages fit into its memory.
        stages: u16,
        /// How many the model has.
        of: u16,
    },
    /// Something has to change first.
    Cannot {
        /// What is so, and why.
        what: String,
        /// The one thing to change.
        remedy: String,
    },
}

impl Verdict {
    /// That something has to change first.
    #[must_use]
    pub fn cannot(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Cannot {
            what: what.into(),
            remedy: remedy.into(),
        }
    }
}

/// Why it is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Ended {
    /// Left as asked for, and nothing is lost.
    Finished,
    /// Left at once, as asked for.
    Stopped,
    /// Left as asked for, without the host's word: it stayed away.
    HostAway,
    /// The run has reached its length.
    RunOver,
    /// The host does not want us.
    Refused {
        /// Why, for a program.
        code: RefuseCode,
        /// What happened and why.
        text: String,
        /// What to do.
        remedy: String,
    },
    /// No device can do the work, and none came back.
    Device {
        /// What happened, in words.
        reason: String,
    },
    /// The host could not be reached.
    Unreachable {
        /// What happened, in words.
        reason: String,
    },
}

/// Something broke: a bug of ours. The run goes on without this volunteer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broken {
    /// `page` or `worker`.
    pub module: String,
    /// What to copy into a report: what broke and where, version, browser. No address, no key.
    pub report: String,
}

#[cfg(test)]
mod tests;
