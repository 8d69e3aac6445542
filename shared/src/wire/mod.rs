//! Whatever crosses a boundary between programs, as one type that both sides use.
//!
//! [`frame`] is what peers say to each other, [`signal`] what they say to the host ([`leases`]: a
//! round's in short), [`report`] what the host tells everybody, [`merge`] how replicas share out their merge, [`chunk`] how frames fit into data channel messages,
//! [`payload`] what a forward frame carries, [`number`] how a boundary's numbers are packed,
//! [`generate`] how the model's tokens are drawn, [`web`] what the host serves of the web client, [`gateway`] how volunteers' sockets can stand in other processes.
//!
//! Invariant: decoding any bytes never panics and allocates no more than its limit.

pub mod chunk;
pub mod frame;
pub mod gateway;
pub mod generate;
pub mod leases;
pub mod merge;
pub mod number;
pub mod payload;
pub mod report;
pub mod signal;
pub mod web;

#[cfg(test)]
mod tests;
