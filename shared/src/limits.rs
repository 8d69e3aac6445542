//! Every limit in one place: a name, a number and the reason for it.
//!
//! ARCHITECTURE.md lists them for people. A queue, retry or size without an entry here is a bug.

use crate::units::Span;

/// Largest frame between peers. A `base` microbatch of dense f32 (8 x 1,024 x 768 x 4 B = 25 MB) fits.
pub const FRAME_BYTES_MAX: usize = 32 << 20;
/// Largest piece of a frame in one data channel message. Every WebRTC stack carries 64 KiB.
pub const CHUNK_BYTES_MAX: usize = 32 << 10;
/// Stages a model may have: one block each.
pub const STAGES_MAX: usize = 512;
/// Part of the largest JSON message that does not grow with the model: an SDP is a few KB, a configuration 16 KB.
pub const SIGNAL_BYTES_BASE: usize = 64 << 10;
/// ... and for each stage, to the host: hashes of five rounds.
pub const SIGNAL_BYTES_A_STAGE: usize = 2 << 10;
/// ... and from the host: four sources with their keys, or the groups of a merge with theirs.
pub const ORDER_BYTES_A_STAGE: usize = 10 << 10;
/// Largest JSON message to or from the host of the largest run.
pub const SIGNAL_BYTES_MAX: usize = SIGNAL_BYTES_BASE + STAGES_MAX * ORDER_BYTES_A_STAGE;
/// Longest header of a frame: the longest reason or signature, with room.
pub const HEADER_BYTES_MAX: usize = 512;
/// Longest reason in a `bye`: a sentence.
pub const REASON_BYTES_MAX: usize = 256;
/// Frames of one peer that are half received at a time: the schedule's credit and
/// [`STATE_CHUNKS_AHEAD`], several times over.
pub const HALF_FRAMES_MAX: usize = 64;
/// How far a frame may overtake the oldest one that has not arrived: with the most state chunks ahead
/// on a link that repeats one message for seconds.
pub const FRAMES_AHEAD_MAX: u32 = 4096;
/// Bytes of half-received frames that a peer may make us keep.
pub const REASSEMBLY_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;
/// Piece of a stage's state in one frame: small beside a microbatch, so that microbatches go first.
pub const STATE_CHUNK_BYTES: usize = 256 << 10;
/// State chunks that a peer may ask for ahead: fills 80 Mbit/s at 100 ms.
pub const STATE_CHUNKS_AHEAD: u32 = 8;
/// Holders of one blob that are asked for pieces of it at a time: each fills its own link, and one that fails costs a third.
pub const STATE_HOLDERS_MAX: usize = 3;
/// Pieces of state for one peer that are cut or about to be: one that waits keeps the link full while one goes.
pub const STATE_PIECES_QUEUED: usize = 2;
/// Requests for pieces that one peer may have waiting: [`STATE_CHUNKS_AHEAD`] of every stage of the largest run, in two rounds.
pub const STATE_REQUESTS_MAX: usize = 8 * 2 * STAGES_MAX;
/// Largest blob of one stage: weights and both moments of 350 M parameters.
pub const STATE_BYTES_MAX: u64 = 4 << 30;
/// Replicas of a stage that merge in one group, each with a link to all others; more merge in levels of groups.
pub const MERGE_GROUP_MAX: u16 = 16;
/// Levels of groups that a merge may have.
pub const MERGE_LEVELS_MAX: u32 = 4;
/// Pipelines of a run: three levels of groups of [`MERGE_GROUP_MAX`] have room for four times as many.
pub const PIPELINES_MAX: u16 = 1_000;
/// Piece of a merge in one frame: as a state's, so that microbatches go first.
pub const MERGE_SLICE_BYTES: usize = STATE_CHUNK_BYTES;
/// Slices of a merge that one peer may have sent and we have not taken: fills 80 Mbit/s at 100 ms.
pub const MERGE_SLICES_AHEAD: u32 = 8;
/// How long a merge may go without a result of any seat until it is begun anew without those that owe one.
pub const MERGE_MAX: Span = Span::from_secs(30);
/// ... and so much longer for each second that its largest seat sends and takes at this rate, in bytes a second.
pub const MERGE_BYTES_PER_SECOND_MIN: u64 = 100_000;
/// Microbatches in flight for each seat behind, beyond what is computed and on the wire: one ready each way, so that neither
/// a late frame nor work in the other direction leaves a seat idle.
pub const READY_A_SEAT: u16 = 2;
/// Microbatches that a seat always has room for at a time: one at work, one that waits, one on the wire.
pub const CREDIT_MIN: u16 = 3;
/// ... and the most it takes unread for its neighbour, however much memory it lends: fewer than [`EARLY_FRAMES_MAX`], so that
/// all of them may come early.
pub const CREDIT_MAX: u16 = 48;
/// A device is taken for hung when a microbatch's job takes so many times what a microbatch took...
pub const HUNG_TIMES: u64 = 16;
/// ... and at least this long: a machine that wakes up, or compiles a kernel anew, stalls too.
pub const HUNG_MIN: Span = Span::from_secs(10);
/// Of a microbatch's job no more than so many times what such jobs took counts as work that a throttled device rests for: the
/// machine was asleep or stopped for the rest of it.
pub const WORKED_TIMES: u64 = 4;
/// Frames of one neighbour, of a future epoch or round, that are kept unread until the host says it is current.
pub const EARLY_FRAMES_MAX: usize = 64;
/// Leases the head holds ahead, so that a round trip to the host costs no pause.
pub const LEASES_AHEAD: usize = 2;
/// ... and at least this long while nothing was measured yet, or a seat is loaded or its weights are copied out.
pub const HUNG_MAX: Span = Span::from_secs(60);
/// Between two tellings of what links are like, if it changed.
pub const LINKS_TOLD_EVERY: Span = Span::from_secs(10);
/// Between two tellings of how fast a device is, if it changed: a line-up may be renewed for it.
pub const SPEED_TOLD_EVERY: Span = Span::from_secs(60);
/// Between two measurements of a spare's device: each takes a microbatch of one stage.
pub const MEASURE_EVERY: Span = Span::from_secs(30);
/// Between two looks of the host at how finely a step is cut, if rounds end that often.
pub const PROPOSAL_EVERY: Span = Span::from_secs(10);
/// How long a frame of a line-up or round that the host has not told of is kept before the host is asked.
pub const ASK_AFTER: Span = Span::from_secs(10);
/// Silence on a link before the neighbour is suspected: never sooner, three keepalives may be late together.
pub const SILENCE_MIN: Span = Span::from_secs(3);
/// ... and never later, so that a loss is noticed within 10 s.
pub const SILENCE_MAX: Span = Span::from_secs(8);
/// Between keepalives on a link, and between the host's pings.
pub const KEEPALIVE: Span = Span::from_secs(1);
/// Pings of the host that go out at once: thousands of answers at a time would keep a signal waiting behind them.
pub const PINGS_AT_ONCE: usize = 64;
/// Turns in which everybody is pinged at most: one each 10 ms, however many there are.
pub const PING_TURNS_MAX: usize = 100;
/// How long a link may take to open before it is tried again, or its ends are placed apart.
pub const LINK_OPEN_MAX: Span = Span::from_secs(8);
/// Tries to open a link between the same two before they are placed apart.
pub const LINK_TRIES_MAX: u32 = 3;
/// How long two that could not connect are placed apart when there is no line-up without them as neighbours.
pub const APART_MAX: Span = Span::from_secs(60);
/// How long ICE may take to find a lost path again by itself, before the link is restarted: a busy machine stalls.
pub const RESTART_GRACE: Span = Span::from_secs(1);
/// How long the other end of a broken link has to answer through the host, before it is suspected.
pub const RESTART_ANSWER_MAX: Span = Span::from_secs(3);
/// How long a link whose ends both live may take to come back by a restart of ICE; then it is opened anew.
pub const RESTART_MAX: Span = Span::from_secs(6);
/// Restarts of one link without [`RESTART_CALM`] between them: a path that breaks that often is not worth keeping.
pub const RESTARTS_MAX: u32 = 3;
/// Time without a restart after which earlier ones are forgotten.
pub const RESTART_CALM: Span = Span::from_secs(60);
/// Connections of one link until which an end opens more (two that do so at once may have a few more), and most that it opens
/// itself: eight carry most of 80 Mbit/s at 50 ms with 0.1 % loss, one a tenth.
pub const FLOWS_MAX: u8 = 8;
/// Longest signal of a further connection: a session description is a few KB.
pub const FLOW_SIGNAL_BYTES_MAX: usize = 16 << 10;
/// How long a further connection may take to come back by a restart of ICE, which waits until the link's first one is
/// back; then the link is given up, as what was on its way by it is lost.
pub const FLOW_RESTART_MAX: Span = Span::from_secs(20);
/// How long a volunteer whose connection to the host broke keeps its seat.
pub const AWAY_MAX: Span = Span::from_secs(8);
/// How long a line-up may take until all seats are ready.
pub const READY_MAX: Span = Span::from_secs(60);
/// How long a round at least waits for a line-up that the one before overtook; else as long again as it took.
pub const OVERTAKEN_WAIT_MIN: Span = Span::from_secs(10);
/// How long a pipeline may go without a step before its line-up is renewed, where no step of it was timed yet or its
/// result is waited for.
pub const STALL_MAX: Span = Span::from_secs(120);
/// ... where steps were timed: [`HUNG_TIMES`] of them, and at least this long. A broken link is mended or noticed before.
pub const STALL_MIN: Span = Span::from_secs(30);
/// How long the host waits after a restart for the pipelines it knew.
pub const RESUME_MAX: Span = Span::from_secs(15);
/// How long a volunteer that finishes waits for a host that is away: twice what a restarted host waits for it.
pub const FINISH_AWAY_MAX: Span = Span::from_secs(30);
/// How long a ticket for an upload is good.
pub const UPLOAD_MAX: Span = Span::from_secs(300);
/// How long the host waits after a checkpoint that could not be written before it tries one that is wanted at
/// once: each try moves all stages.
pub const CHECKPOINT_RETRY: Span = Span::from_secs(5);
/// Volunteers connected to one host process.
pub const VOLUNTEERS_MAX: usize = 20_000;
/// Gateways in front of one host: more than its volunteers need.
pub const GATEWAYS_MAX: usize = 64;
/// Silence of a gateway, or of the host to a gateway, before the other end takes it for dead and all its connections for
/// closed: several keepalives may be late together, and it is less than [`AWAY_MAX`].
pub const GATEWAY_SILENCE_MAX: Span = Span::from_secs(5);
/// How long a gateway waits for its session before it asks again.
pub const GATEWAY_OPEN_MAX: Span = Span::from_secs(2);
/// Packets between a gateway and the host, each way, that were sent and not yet taken; then sockets are read more slowly.
pub const GATEWAY_PACKETS_AHEAD: usize = 1_024;
/// Messages for a gateway's volunteers that the host takes out of their outboxes at once, the equal ones among them in one
/// packet: a millisecond's work, while which the coordinator waits.
pub const GATEWAY_TOLD_AT_ONCE: usize = 4_096;
/// What a packet between a gateway and the host has beside the message in it.
pub const GATEWAY_PACKET_BYTES: usize = 1 << 10;
/// Longest name a volunteer may give itself, in characters.
pub const NAME_CHARS_MAX: usize = 32;
/// Candidates kept that came before the description they belong to: a machine has a few interfaces.
pub const CANDIDATES_EARLY_MAX: usize = 64;
/// Links one volunteer keeps open: two neighbours, and those it copies from or for. The one of least use makes room.
pub const LINKS_MAX: usize = 64;
/// How long a source of state may be silent before the next one is asked.
pub const FETCH_SILENCE_MAX: Span = Span::from_secs(10);
/// Between two looks of the coordinator at its clocks: well below the shortest bound it keeps.
pub const TICK: Span = Span::from_millis(250);
/// How long a suspected volunteer has to answer the host's ping.
pub const SUSPECT_ANSWER_MAX: Span = Span::from_secs(3);
/// How long a volunteer that was not ready in time gets no seat.
pub const BENCH: Span = Span::from_secs(60);
/// How long one copy of a stage may take before it is ordered anew.
pub const COPY_MAX: Span = Span::from_secs(120);
/// Strikes (NaN from finite input) after which a volunteer loses its seat for good.
pub const STRIKES_MAX: u32 = 2;
/// Volunteers that must have got malformed frames of another one before it is removed: one alone may lie.
pub const MALFORMED_ACCUSERS: usize = 2;
/// Volunteers, by key, that could not get a state from one who says it holds it, before that one is not believed: one
/// volunteer's network may be at fault.
pub const MISSING_MAX: usize = 3;
/// Times in a row that a volunteer cannot get its seat's state, before it gets no seat for [`BENCH`].
pub const SEAT_FAILURES_MAX: u32 = 3;
/// Rounds whose losses say what the next one may be.
pub const LOSS_WINDOW: usize = 8;
/// Longest rest of a throttled device at once, so that it still answers its pipeline in time.
pub const REST_MAX: Span = Span::from_secs(30);
/// How much of a rest that lasted too long is taken off the next ones: a hidden tab's clock ticks each second.
pub const REST_LATE_MAX: Span = Span::from_secs(3);
/// Between two tellings of how a volunteer stands: what a person can follow.
pub const STATS_EVERY: Span = Span::from_secs(1);
/// Committed rounds that a volunteer remembers its own part of: no rewind goes further back.
pub const ACCEPTED_ROUNDS_MAX: usize = 1_024;
/// Frames on their way whose sending a trace shows: what a pipe has in flight, and slices and pieces, several times over.
pub const TRACED_FRAMES_MAX: usize = 1_024;
/// Marks of a trace that wait for a slow disk before some are lost: seconds of the fastest seat.
pub const TRACE_MARKS_WAITING_MAX: usize = 8_192;
/// Longest trace: an hour of a seat that computes 100 microbatches a second. What comes after it is not written.
pub const TRACE_BYTES_MAX: u64 = 256 << 20;
/// Texts that one pipeline writes at a time: each keeps the keys and values of a context, in every block.
pub const TEXTS_MAX: usize = 4;
/// Jobs of training between two for texts where both wait: a token is a row of a microbatch's hundreds, so training keeps
/// nearly all of the device, and no text waits for more than a job of it.
pub const TEXT_EVERY_JOBS: u32 = 1;
/// How long a seat remembers a text that nothing more comes of: its head is gone, or has forgotten it.
pub const TEXT_IDLE_MAX: Span = Span::from_secs(120);
/// How long the host waits for a text's next token before it has another pipeline, or the same one again, go on: a token waits
/// for a job at each seat, and for what compiles there.
pub const TEXT_SILENCE_MAX: Span = Span::from_secs(45);
/// How long a text waits for a pipeline that has room for it.
pub const TEXT_WAIT_MAX: Span = Span::from_secs(60);
/// Line-ups that a text may lose before it is given up.
pub const TEXT_TRIES_MAX: u32 = 4;
/// Texts at the host, those that wait and those that are being written.
pub const TEXTS_AT_HOST_MAX: usize = 64;
/// ... of one address: a page's and a terminal's.
pub const TEXTS_AN_ADDRESS_MAX: usize = 2;
/// Tokens that one request may have written.
pub const TEXT_TOKENS_MAX: u32 = 1_024;
/// Tokens of a prompt: with all that is written a message to the head stays below [`SIGNAL_BYTES_BASE`].
pub const PROMPT_TOKENS_MAX: usize = 4_096;
/// Bytes of a prompt's text that are read at all.
pub const PROMPT_BYTES_MAX: usize = 32 << 10;
/// Rounds between two texts that the page shows of themselves.
pub const SAMPLE_ROUNDS: u32 = 4;
/// ... and at least this long, where rounds are short.
pub const SAMPLE_EVERY: Span = Span::from_secs(30);
/// Tokens of such a text: a few lines.
pub const SAMPLE_TOKENS: u32 = 160;
