//! WebSocket gateways in front of one host: processes without state, joined to it by a message system (NATS).
//!
//! A volunteer's socket is served by the same code everywhere ([`Entrance`](crate::app::Entrance)). In the host its events
//! go to the coordinator's task by a channel, which is the default and needs nothing of this. In a gateway they go
//! through NATS: [`front`] is the gateway's end of its session, [`back`] the host's, [`link`] what they have in common.
//! [`told`] puts what many are told into few packets. These decide and never wait; [`serve`] is the process around a
//! front, [`bridge`] and `desk` the host's tasks around its backs, [`nats`] the connection.
//!
//! NATS delivers at most once. So what is lost, repeated or exchanged ends the session: the gateway closes its sockets,
//! the host takes them for closed, and volunteers come again as after any broken connection. Begin with [`link`].

pub mod args;
pub mod back;
pub mod bridge;
mod desk;
pub mod front;
pub mod link;
pub mod nats;
pub mod serve;
pub mod told;

#[cfg(test)]
mod tests;
