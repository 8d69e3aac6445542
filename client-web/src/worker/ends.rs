//! Data channels that the page handed over: their messages never pass it.
//!
//! Listens from the moment that a channel arrives, since its messages wait for nobody. What it hears goes the same
//! way as what the page tells, in order; what it means is [`super::transport`]'s business.

use js_sys::ArrayBuffer;
use shared::transport::Channel;
use wasm_bindgen::{JsCast, JsValue};
use web_sys::{MessageEvent, RtcDataChannel, RtcDataChannelState, RtcDataChannelType};

use super::port::scope;
use super::transport::{Inlet, Told};
use crate::flow::limit_bytes;
use crate::js::{Listener, get};
use crate::messages::{LinkId, Parcel};

/// Whether this browser lets a worker have data channels.
pub(super) fn can_be_had() -> bool {
    get(&scope(), "RTCDataChannel").is_function()
}

/// One end of a data channel.
#[derive(Debug)]
pub(super) struct End {
    channel: RtcDataChannel,
    _listeners: [Listener; 4],
}

impl End {
    /// Takes what the page handed over; what is heard from now on goes into the inlet.
    pub(super) fn take(parcel: Parcel<RtcDataChannel>, inlet: &Inlet) {
        let Parcel {
            at,
            channel: kind,
            load: channel,
        } = parcel;
        channel.set_binary_type(RtcDataChannelType::Arraybuffer);
        // A megabyte fits into 32 bits.
        let half = u32::try_from(limit_bytes(kind) / 2).unwrap_or(u32::MAX);
        channel.set_buffered_amount_low_threshold(half);
        let hear = |name: &'static str, told: fn(LinkId, Channel, &JsValue) -> Told| {
            let inlet = inlet.clone();
            Listener::new(&channel, name, move |event| {
                inlet.put(told(at, kind, &event));
            })
        };
        let listeners = [
            hear("open", |at, _, _| Told::ChannelOpen(at)),
            hear("close", |at, _, _| Told::ChannelClosed(at)),
            hear("message", |at, channel, event| {
                let data = event.unchecked_ref::<MessageEvent>().data();
                // Text is nothing that any build of ours sends.
                data.dyn_into::<ArrayBuffer>()
                    .map_or(Told::ChannelClosed(at), |load| {
                        Told::Parcel(Parcel { at, channel, load })
                    })
            }),
            hear("bufferedamountlow", |at, channel, _| {
                Told::ChannelLow(at, channel)
            }),
        ];
        let end = Self {
            channel,
            _listeners: listeners,
        };
        inlet.put(Told::Channel(at, kind, end));
    }

    pub(super) fn is_open(&self) -> bool {
        self.channel.ready_state() == RtcDataChannelState::Open
    }

    /// Bytes that the browser took and has not sent.
    pub(super) fn buffered(&self) -> u64 {
        self.channel.buffered_amount().into()
    }

    /// Gives a message to the browser; `false` if the channel is closed, or larger messages than this are not taken.
    pub(super) fn send(&self, message: &[u8]) -> bool {
        self.channel.send_with_u8_array(message).is_ok()
    }
}
