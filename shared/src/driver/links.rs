//! What the loop does with links: frames and signals between [`Peer`], each link's [`Outbox`] and the transport.

use crate::driver::{Host, Loop, Outbox};
use crate::peer::Peer;
use crate::transport::{Channel, Flow, FlowName, LinkEvent, LinkStep, NetEvent, Transport};
use crate::units::{PeerId, Time};
use crate::wire::frame::{Frame, Header};

impl<T: Transport, H: Host, C> Loop<T, H, C> {
    /// A step of a link's first connection: a new one ends all that the link had.
    pub(super) fn link(&mut self, to: PeerId, step: LinkStep) {
        let ends = matches!(
            step,
            LinkStep::Offer { .. } | LinkStep::Answer { .. } | LinkStep::Close
        );
        if ends && let Some(mut outbox) = self.outboxes.remove(&to) {
            outbox.close(to, &mut self.transport);
        }
        self.transport.link(Flow::first(to), step);
    }

    pub(super) fn send(&mut self, now: Time, to: PeerId, frame: &Frame) {
        if let Some(outbox) = self.outboxes.get_mut(&to) {
            self.tracer.sends(now, to, frame);
            outbox.push(frame);
            outbox.flush(now, to, &mut self.transport);
        }
    }

    /// Whoever has room for more pieces of state gets them.
    pub(super) fn tell_state_left(&mut self, peer: &mut Peer, now: Time) {
        for (&to, outbox) in &mut self.outboxes {
            for _ in 0..outbox.state_left() {
                peer.handle_state_sent(now, to);
            }
        }
    }

    pub(super) fn handle_net(&mut self, peer: &mut Peer, now: Time, event: NetEvent) {
        match event {
            NetEvent::Link {
                flow:
                    Flow {
                        peer: other,
                        number: 0,
                    },
                event,
            } => {
                if let LinkEvent::Open { generation, .. } = event {
                    // A new connection numbers its frames from the beginning.
                    let bounds = self.transport.bounds_links();
                    let outbox = Outbox::new(self.sent.clone(), bounds, generation);
                    self.outboxes.insert(other, outbox);
                }
                if let LinkEvent::Open { relayed, .. } | LinkEvent::Resumed { relayed, .. } = event
                    && let Some(outbox) = self.outboxes.get_mut(&other)
                {
                    outbox.set_relayed(relayed);
                }
                peer.handle_link_event(now, other, event);
            }
            NetEvent::Link { flow, event } => {
                if let Some(outbox) = self.outboxes.get_mut(&flow.peer) {
                    outbox.handle_flow_event(now, flow.number, event);
                }
                self.flush(peer, now, flow.peer);
            }
            NetEvent::Message {
                flow,
                channel,
                bytes,
            } => {
                let Flow {
                    peer: other,
                    number,
                } = flow;
                let Some(outbox) = self.outboxes.get_mut(&other) else {
                    return;
                };
                let joined = outbox.join(number, channel, bytes);
                // It is told of what has arrived.
                outbox.flush(now, other, &mut self.transport);
                if number == 0 {
                    // What comes by another one says nothing of the first one's path.
                    peer.handle_heard(now, other);
                }
                match joined {
                    Ok(Some(Frame {
                        header: Header::Arrived { bytes, asks },
                        ..
                    })) => self.arrived(now, flow, bytes, asks),
                    Ok(Some(_)) if number > 0 && channel == Channel::Control => {
                        let reason = "a frame on a `control` that is not the link's";
                        peer.handle_malformed(now, other, reason);
                    }
                    Ok(Some(Frame {
                        header: Header::Flow(name),
                        payload,
                    })) => self.flow(peer, now, other, name, &payload),
                    Ok(Some(frame)) => {
                        self.tracer.receives(now, other, &frame);
                        peer.handle_frame_aside(now, other, frame);
                    }
                    Ok(None) => {}
                    Err(error) => peer.handle_malformed(now, other, &error.to_string()),
                }
            }
            NetEvent::Drained { flow, .. } => self.flush(peer, now, flow.peer),
        }
    }

    /// Sends what can go to `to`, unless the link has lost something.
    fn flush(&mut self, peer: &mut Peer, now: Time, to: PeerId) {
        let Some(outbox) = self.outboxes.get_mut(&to) else {
            return;
        };
        match outbox.lost() {
            Some(event) => peer.handle_link_event(now, to, event),
            None => outbox.flush(now, to, &mut self.transport),
        }
    }

    /// The other end says something of the further connection that it calls so.
    fn flow(&mut self, peer: &mut Peer, now: Time, from: PeerId, name: FlowName, signal: &[u8]) {
        // Whose connection would it be?
        if !peer.is_linked(from) {
            return;
        }
        let Some(outbox) = self.outboxes.get_mut(&from) else {
            return;
        };
        if let Err(error) = outbox.handle_signal(now, name, signal) {
            return peer.handle_malformed(now, from, &error.to_string());
        }
        self.flush(peer, now, from);
    }

    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.outboxes
            .values()
            .filter_map(Outbox::poll_timeout)
            .min()
    }

    pub(super) fn handle_timeout(&mut self, peer: &mut Peer, now: Time) {
        let is_due = |outbox: &Outbox| outbox.poll_timeout().is_some_and(|at| now >= at);
        let due = self.outboxes.iter().filter(|(_, outbox)| is_due(outbox));
        let due: Vec<PeerId> = due.map(|(to, _)| *to).collect();
        for to in due {
            if let Some(outbox) = self.outboxes.get_mut(&to) {
                outbox.handle_timeout(now);
            }
            self.flush(peer, now, to);
        }
    }

    /// So much less is under way: more may go.
    fn arrived(&mut self, now: Time, from: Flow, bytes: u64, asks: bool) {
        if let Some(outbox) = self.outboxes.get_mut(&from.peer) {
            outbox.arrived(now, from.number, bytes, asks);
            outbox.flush(now, from.peer, &mut self.transport);
        }
    }
}
