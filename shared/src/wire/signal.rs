//! What volunteers and the host say to each other: JSON text over one WebSocket.
//!
//! All messages about a seat carry its [`Place`]. The host speaks first ([`Down::Hello`]), the volunteer
//! answers with [`Up::Join`], and is welcomed or refused.
//!
//! Invariant: a message of more than [`SIGNAL_BYTES_MAX`](crate::limits::SIGNAL_BYTES_MAX) bytes is not read, and by a
//! host none that exceeds what its run needs ([`RunConfig::signal_bytes_max`]).

mod lending;
mod proof;

use serde::{Deserialize, Serialize};

use super::frame::{Mode, Place};
pub use super::generate::Generate;
use super::leases::Leases;
pub use super::merge::MergeOrder;
use crate::config::run::RunConfig;
pub use crate::transport::IceServer;
use crate::transport::LinkSignal;
use crate::units::{
    Attempt, Digest, PeerId, RequestId, Round, SampleRange, StageId, StageRange, Step,
};
pub use lending::{Capabilities, Pause, Speed, VolunteerKind};
pub use proof::{hello_message, join_message, verifies};

/// A stage's state that somebody holds: round, stage and both hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Held {
    /// The round whose theta it is.
    pub round: Round,
    /// The stage.
    pub stage: StageId,
    /// Hash of the agreed part.
    pub agreed: Digest,
    /// Hash of the whole blob.
    pub blob: Digest,
}

/// What a volunteer that was seated when its connection broke brings back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resume {
    /// The number it had.
    pub peer: PeerId,
    /// Its seat, if it still works in one.
    pub place: Option<Place>,
    /// The attempt that it was told to begin, if it was.
    pub attempt: Option<Attempt>,
    /// As head: its last report.
    pub report: Option<Report>,
    /// As head: the leases of this round, done and held.
    pub leases: Leases,
    /// Its last `holds` of its own round, if no commit answered it yet.
    pub holds: Option<Holds>,
    /// Its last `holds` of a merge, likewise.
    pub merged: Option<Holds>,
}

/// The volunteer's first message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Join {
    /// [`VERSION`](super::frame::VERSION) of the volunteer's build.
    pub version: u8,
    /// Ed25519 public key, 64 hexadecimal digits.
    pub key: Digest,
    /// Ed25519 signature over [`join_message`], 128 hexadecimal digits.
    pub proof: String,
    /// Number of this session, drawn by the volunteer: two processes never share one.
    pub session: u64,
    /// What to call it, on the page.
    pub name: String,
    /// Hash of what the volunteer derives from the run's seed: equal everywhere, or it can't take part.
    pub seed_hash: Digest,
    /// What it is and can do.
    pub capabilities: Capabilities,
    /// Why it rests, if it does: then it gets no seat.
    pub paused: Option<Pause>,
    /// State it has kept.
    pub kept: Vec<Held>,
    /// What it was doing when the connection broke.
    pub resume: Option<Resume>,
    /// An invitation, for runs that ask for one. None does yet: every run is open to whoever has its link.
    pub invite: Option<String>,
}

/// A head's account of its round, cumulative.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Line-up and round.
    pub place: Place,
    /// Steps done in the round.
    pub steps: u32,
    /// Mean token loss of the last step, in nats.
    pub loss: f64,
    /// Mean token loss over the round so far, in nats.
    pub round_loss: f64,
    /// Microseconds from the round's beginning to the end of its last step.
    pub elapsed_us: u64,
    /// Payload bytes of forward frames that the head sent in the round.
    pub forward_bytes: u64,
    /// Payload bytes of backward frames that came to the head in the round.
    pub backward_bytes: u64,
}

/// A seat's results for the end of a round. Provisional until the commit names the attempt.
///
/// Under the attempt that [`Down::Begin`] named they are what the pipeline trained by itself, and all that a merge starts
/// from; under the attempt of a [`Down::Merge`] they are what the merge gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holds {
    /// Line-up, and the round that was trained; the results are `theta_{round + 1}`.
    pub place: Place,
    /// The attempt that [`Down::Begin`] or [`Down::Merge`] named.
    pub attempt: Attempt,
    /// Steps that were applied in the round.
    pub steps: u32,
    /// One a stage of the seat.
    pub stages: Vec<Held>,
}

/// What a volunteer measured of its link to another one. Integers: placement decides by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkFigures {
    /// The other end.
    pub peer: PeerId,
    /// Microseconds one way: half of what a keepalive and its answer take.
    pub delay_us: u64,
    /// Payload bytes a second from this volunteer to the other end; `None` until enough went over to tell.
    pub bytes_per_second: Option<u64>,
    /// Whether packets go through a TURN server.
    pub relayed: bool,
}

/// The samples of exactly one step of one pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Line-up and round.
    pub place: Place,
    /// The step.
    pub step: Step,
    /// Its samples.
    pub samples: SampleRange,
    /// Whether the round ends with this step.
    pub last: bool,
}

/// Volunteer to host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Up {
    /// Let me in.
    Join(Box<Join>),
    /// For another volunteer, to open a link.
    Signal {
        /// The other end.
        to: PeerId,
        /// What it is told.
        signal: LinkSignal,
    },
    /// Links are up and `theta_round` is in place.
    Ready {
        /// The seat.
        place: Place,
        /// Hashes of its stages' theta.
        stages: Vec<Held>,
    },
    /// After each step, from the head.
    Report(Report),
    /// After each round, from each seat.
    Holds(Holds),
    /// The mean token loss of an evaluation, from the head.
    Evaluated {
        /// Line-up, and the round that was evaluated.
        place: Place,
        /// Mean token loss on held-out data, in nats.
        loss: f64,
    },
    /// A copy that the host asked for is complete and checked.
    Copied {
        /// What I hold now.
        held: Held,
    },
    /// A copy or a seat's state could not be had from any source I was told.
    Missing {
        /// The round.
        round: Round,
        /// The stage.
        stage: StageId,
    },
    /// An upload is done.
    Uploaded {
        /// The round.
        round: Round,
        /// The stage.
        stage: StageId,
        /// The ticket it was done with.
        ticket: String,
    },
    /// Something about me changed: what I lend now. Said again it has no effect.
    Update {
        /// What I am and can do.
        capabilities: Capabilities,
        /// Why I rest, if I do: I give up my seat as in `finish`, and stay connected.
        paused: Option<Pause>,
    },
    /// A neighbour is silent, or no link to it opens, or somebody that I have a link to sends what no correct build does.
    Suspect {
        /// My seat, if I have one.
        place: Option<Place>,
        /// Whom I suspect.
        peer: PeerId,
        /// Why.
        suspicion: Suspicion,
    },
    /// What my links are like, now and then and when it changed. Each message replaces the one before.
    Links {
        /// Payload bytes a second that I sent to the host when it took state from me; `None` until it did.
        host_bytes_per_second: Option<u64>,
        /// Links to other volunteers; at most [`LINKS_MAX`](crate::limits::LINKS_MAX) are read.
        links: Vec<LinkFigures>,
    },
    /// My neighbours are at a line-up or round that I was not told of, or I was not told to begin: please tell me again.
    Ask {
        /// Where I am, if I have a seat.
        place: Option<Place>,
    },
    /// A stage made NaN or infinity, from finite input if `own`.
    NonFinite {
        /// My seat.
        place: Place,
        /// The stage.
        stage: StageId,
        /// Whether the seat's input was finite.
        own: bool,
    },
    /// Nothing can come of that attempt at a merge at my seat, and nobody else is at fault.
    MergeFailed {
        /// My seat.
        place: Place,
        /// The attempt.
        attempt: Attempt,
    },
    /// The next token of a text, from the head.
    Written {
        /// My seat.
        place: Place,
        /// Which text.
        request: RequestId,
        /// Tokens of it that were drawn before.
        drawn: u32,
        /// The token.
        token: u32,
    },
    /// My pipeline cannot go on with a text, from the head.
    NotWritten {
        /// My seat.
        place: Place,
        /// Which text.
        request: RequestId,
        /// Why, in words.
        reason: String,
    },
    /// I leave after this round's commit; please find a replacement.
    Finish,
    /// I leave now.
    Leave {
        /// Whether it is a reload that comes back.
        may_return: bool,
    },
    /// Answer to [`Down::Ping`].
    Pong {
        /// The ping's number.
        nonce: u64,
    },
}

/// Why a neighbour is suspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suspicion {
    /// Nothing was heard of it for too long.
    Silent,
    /// No link to it opened in time.
    Unreachable,
    /// It sent what no correct build sends.
    Malformed,
    /// The microbatch it should have sent is long overdue.
    Slow,
}

/// Where a stage's state can be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// It follows from the run's seed.
    Seed,
    /// A peer keeps it.
    Peer {
        /// Who.
        peer: PeerId,
        /// Hash of its blob: replicas agree on the weights, and each carries its own moments.
        blob: Digest,
    },
    /// The host's store serves it.
    Store {
        /// A path under the host's address.
        path: String,
        /// Hash of the stored blob.
        blob: Digest,
    },
}

/// One stage's state to get hold of, and where. Sources are tried in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// What is wanted: any blob of a source will do whose agreed part has this hash.
    pub held: Held,
    /// Where it can be had.
    pub sources: Vec<Source>,
}

/// A neighbour in the pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its number.
    pub peer: PeerId,
    /// Its public key: what its `hello` must be signed with.
    pub key: Digest,
}

/// A seat for a volunteer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatOrder {
    /// Line-up, and the round to start from.
    pub place: Place,
    /// Stages of the seat.
    pub stages: StageRange,
    /// The seat before; `None` for the head.
    pub previous: Option<Neighbour>,
    /// The seat after; `None` for the last.
    pub next: Option<Neighbour>,
    /// Seats in this pipeline behind this one.
    pub seats_behind: u16,
    /// Where to get the state of each stage of the seat.
    pub state: Vec<Fetch>,
    /// Keys of the peers named as sources.
    pub keys: Vec<Neighbour>,
}

/// The run's data, as the host serves it: token ids, u16 little-endian (u32 when the vocabulary exceeds 65,536).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataInfo {
    /// Hash over all tokens.
    pub digest: Digest,
    /// Tokens to train on, served with Range at `/data/train.bin`.
    pub train_tokens: u64,
    /// Tokens held out, served with Range at `/data/validation.bin`.
    pub validation_tokens: u64,
}

/// What a volunteer is told at the door.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// Its number.
    pub peer: PeerId,
    /// The run's configuration.
    pub config: RunConfig,
    /// The run's data.
    pub data: DataInfo,
    /// ICE servers, with credentials that expire.
    pub ice_servers: Vec<IceServer>,
    /// Newest committed round.
    pub round: Round,
    /// Whether the seat named in [`Resume`] goes on.
    pub resumed: bool,
}

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefuseCode {
    /// The build speaks another version.
    Version,
    /// The volunteer derives other weights from the seed than the host does.
    SeedHash,
    /// The proof does not fit the key.
    Proof,
    /// The same session is already connected.
    Session,
    /// The host holds as many volunteers as it can.
    Full,
    /// An invitation is needed, or the one given is not valid. No host says so yet.
    Invite,
    /// It misbehaved and was removed.
    Removed,
    /// The run is over.
    Over,
    /// The message could not be read.
    Malformed,
}

/// Host to volunteer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Down {
    /// The host's first message.
    Hello {
        /// [`VERSION`](super::frame::VERSION) of the host's build.
        version: u8,
        /// To be signed by the volunteer.
        nonce: Digest,
        /// The run's configuration: what a volunteer measures itself against before it joins.
        config: Box<RunConfig>,
    },
    /// Come in.
    Welcome(Box<Welcome>),
    /// Not you, or not now.
    Refuse {
        /// Why, for a program.
        code: RefuseCode,
        /// What happened and why.
        text: String,
        /// What to do.
        remedy: String,
    },
    /// Take this seat. Any seat of before is void.
    Seat(Box<SeatOrder>),
    /// Give up the seat; keep the copies.
    Spare {
        /// The line-up that is over.
        place: Place,
    },
    /// From another volunteer, to open a link.
    Signal {
        /// The other end.
        from: PeerId,
        /// Its public key.
        key: Digest,
        /// What it says.
        signal: LinkSignal,
    },
    /// To all seats of a line-up, when all are ready: go. The head acts on it, the others learn the attempt.
    Begin {
        /// Line-up and round.
        place: Place,
        /// Training or evaluation.
        mode: Mode,
        /// The attempt at this round's end.
        attempt: Attempt,
        /// The number that the round's result gets if it is committed.
        result: Round,
        /// Samples committed before the round.
        samples_done: u64,
    },
    /// To the head: samples for a step.
    Lease(Lease),
    /// To the head: finish the step you are in, then end the round.
    Close {
        /// Line-up and round.
        place: Place,
    },
    /// To the head: go on with a text, beside the training.
    Generate(Box<Generate>),
    /// To the head: nobody wants more of a text.
    Forget {
        /// Line-up and round.
        place: Place,
        /// Which text.
        request: RequestId,
    },
    /// Merge what the round made of your stages with those of other pipelines, then say `holds` under this attempt.
    Merge(Box<MergeOrder>),
    /// The round is committed: `theta_{round}` is what the attempt made of its parent.
    Commit {
        /// The new round.
        round: Round,
        /// The line-up that trained it.
        place: Place,
        /// The attempt that won.
        attempt: Attempt,
        /// Hash of each stage.
        stages: Vec<Held>,
    },
    /// Which rounds to keep beside the newest committed one: all others may be dropped.
    Safe {
        /// The newest safe round.
        round: Round,
        /// The round that is being copied and uploaded, to become the next safe one.
        securing: Option<Round>,
    },
    /// The run went back: rounds after `to` are void.
    Rewind {
        /// The newest round that still stands.
        to: Round,
    },
    /// Keep a copy of this.
    Copy {
        /// What to keep, and where it can be had.
        fetch: Fetch,
        /// Keys of the peers named as sources.
        keys: Vec<Neighbour>,
    },
    /// Send this to the store: `PUT` to `/store/upload/{ticket}`.
    Upload {
        /// The state to send.
        held: Held,
        /// Good for one upload.
        ticket: String,
    },
    /// What you held is safe without you: leave whenever you like.
    Released,
    /// Use these ICE servers from now on: the credentials of those of before expire.
    IceServers {
        /// All of them.
        ice_servers: Vec<IceServer>,
    },
    /// Why you wait, or what you do, in words.
    Reason {
        /// One sentence.
        text: String,
    },
    /// Are you there?
    Ping {
        /// To be sent back.
        nonce: u64,
    },
}

/// Reads a message of either direction, of a run of whatever size.
///
/// # Errors
/// Longer than the limit, or not a message of that direction.
pub fn decode<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, SignalError> {
    decode_within(text, crate::limits::SIGNAL_BYTES_MAX)
}

/// Reads a message of at most `limit_bytes`: a host knows its run, and how much a volunteer has to say in it.
///
/// # Errors
/// Longer than the limit, or not a message of that direction.
pub fn decode_within<'a, T: Deserialize<'a>>(
    text: &'a str,
    limit_bytes: usize,
) -> Result<T, SignalError> {
    if text.len() > limit_bytes {
        return Err(SignalError::TooLarge {
            len_bytes: text.len(),
            limit_bytes,
        });
    }
    serde_json::from_str(text).map_err(|error| SignalError::Malformed {
        reason: error.to_string(),
    })
}

/// Writes a message of either direction as JSON.
pub fn encode<T: Serialize>(message: &T) -> String {
    serde_json::to_string(message).expect("messages have string keys and finite numbers or null")
}

/// Why text from a volunteer or a host was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignalError {
    /// Too long to be read.
    #[error("message of {len_bytes} bytes exceeds the limit of {limit_bytes}")]
    TooLarge {
        /// How long it was.
        len_bytes: usize,
        /// How long it may be.
        limit_bytes: usize,
    },
    /// Not a message.
    #[error("not a message of this protocol: {reason}")]
    Malformed {
        /// What the JSON reader said.
        reason: String,
    },
}
