//! `shoal-host` as a library: what the binary, the auditor and tests use.
//!
//! [`start`] puts everything together. [`data`] prepares what is served, [`journal`] keeps rows, [`store`] keeps blobs
//! and manifests, [`web`] the page's program, [`texts`] stands between people's words and the model's, [`door`] counts who knocks. [`conductor`] is the one task that owns the coordinator; HTTP handlers
//! reach it through [`app`]. [`gateway`] lets other processes hold volunteers' sockets. [`audit`] judges a journal.

pub mod announce;
pub mod app;
pub mod args;
pub mod audit;
pub mod conductor;
pub mod data;
pub mod descriptors;
pub mod door;
pub mod failure;
pub mod gateway;
mod http;
pub mod journal;
pub mod metrics;
pub mod process;
pub mod report;
mod sampler;
pub mod start;
pub mod store;
pub mod texts;
pub mod tls;
pub mod turn;
pub mod web;
