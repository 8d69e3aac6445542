//! How much memory a GPU gives: taken in pieces, written to, and given back.
//!
//! No graphics API that we use says how much memory is free, and much of what it grants it only provides once it is
//! written to. What was had here is there a moment later unless another program takes it meanwhile.
//!
//! Invariant: a GPU that is out of memory says so here as a value, and computes on.

use burn::tensor::wgpu::{WgpuSetup, wgpu};

use super::Opened;

/// Pieces in which memory is taken: every device takes buffers of this size, and a trial errs by less than that.
const PIECE_BYTES: u64 = 128 << 20;

/// What a GPU gave when it was asked for memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// What could be had, at most what was asked for.
    pub given_bytes: u64,
    /// What the driver said when it gave no more.
    pub refusal: Option<String>,
}

/// A GPU as its driver sees it.
#[derive(Clone, Debug)]
pub(super) struct Handles {
    device: wgpu::Device,
    queue: wgpu::Queue,
}

impl Opened {
    /// Takes `wanted_bytes` of the device's memory, writes to all of it and gives it back.
    ///
    /// `None` for a device that isn't a GPU: how much memory a machine has, the machine says. Waits for the device.
    #[must_use]
    pub fn try_memory(&self, wanted_bytes: u64) -> Option<Trial> {
        let gpu = self.gpu.as_ref()?;
        Some(take(wanted_bytes, PIECE_BYTES, |bytes| gpu.take(bytes)))
    }
}

impl Handles {
    pub(super) fn new(setup: WgpuSetup) -> Self {
        Self {
            device: setup.device,
            queue: setup.queue,
        }
    }

    /// A piece of memory that was written to.
    fn take(&self, bytes: u64) -> Result<Piece, String> {
        use wgpu::ErrorFilter;
        let device = &self.device;
        // Caught here, an error ends nothing; uncaught it is a panic.
        let filters = [
            ErrorFilter::Validation,
            ErrorFilter::Internal,
            ErrorFilter::OutOfMemory,
        ];
        let scopes = filters.map(|filter| device.push_error_scope(filter));
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("trial"),
            size: bytes.next_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let piece = Piece {
            buffer,
            device: device.clone(),
        };
        let mut commands =
            device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        commands.clear_buffer(&piece.buffer, 0, None);
        self.queue.submit([commands.finish()]);
        let waited = device.poll(wgpu::PollType::wait_indefinitely());
        let caught = scopes.into_iter().rev().map(wgpu::ErrorScopeGuard::pop);
        // The first error is the cause of the others.
        let caught: Vec<_> = caught.collect();
        for error in caught {
            use futures_util::FutureExt as _;
            if let Some(error) = error.now_or_never().flatten() {
                return Err(error.to_string().to_lowercase());
            }
        }
        waited.map_err(|error| error.to_string())?;
        Ok(piece)
    }
}

/// Memory of a GPU that is given back at once when the value goes.
struct Piece {
    buffer: wgpu::Buffer,
    device: wgpu::Device,
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.buffer.destroy();
        // A device that fails here fails at the next job, too.
        drop(self.device.poll(wgpu::PollType::Poll));
    }
}

/// Takes pieces until `wanted_bytes` are had or one is refused, holding all of them meanwhile.
fn take<P>(
    wanted_bytes: u64,
    piece_bytes: u64,
    mut one: impl FnMut(u64) -> Result<P, String>,
) -> Trial {
    let mut held = Vec::new();
    let mut given_bytes = 0;
    while given_bytes < wanted_bytes {
        let bytes = piece_bytes.min(wanted_bytes - given_bytes);
        match one(bytes) {
            Ok(piece) => held.push(piece),
            Err(refusal) => {
                return Trial {
                    given_bytes,
                    refusal: Some(refusal),
                };
            }
        }
        given_bytes += bytes;
    }
    Trial {
        given_bytes,
        refusal: None,
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::super::adapters;
    use super::*;

    /// Takes from a device that has `memory_bytes`, in pieces of 10.
    fn take_of(memory_bytes: u64, wanted_bytes: u64) -> Trial {
        let held = Rc::new(());
        take(wanted_bytes, 10, |bytes| {
            let held_bytes = 10 * (Rc::strong_count(&held) as u64 - 1);
            if held_bytes + bytes <= memory_bytes {
                Ok(Rc::clone(&held))
            } else {
                Err("none is left".to_owned())
            }
        })
    }

    #[test]
    fn memory_is_taken_until_there_is_enough_or_no_more() {
        let given = |memory, wanted| {
            let trial = take_of(memory, wanted);
            (trial.given_bytes, trial.refusal.is_some())
        };
        assert_eq!(given(100, 35), (35, false));
        assert_eq!(given(35, 35), (35, false));
        assert_eq!(given(34, 35), (30, true));
        assert_eq!(given(9, 35), (0, true));
        assert_eq!(given(9, 0), (0, false));
    }

    #[test]
    fn an_adapter_gives_what_it_has_again_and_again_and_refuses_a_piece_that_is_too_large() {
        let adapter = adapters().first().expect("a Vulkan driver is installed");
        let opened = adapter.open().expect("it opens");
        let wanted_bytes = PIECE_BYTES + 5;
        for _ in 0..3 {
            let trial = opened.try_memory(wanted_bytes).expect("it is a GPU");
            assert_eq!(trial.refusal, None);
            assert_eq!(trial.given_bytes, wanted_bytes);
        }
        let gpu = opened.gpu.as_ref().expect("it is a GPU");
        let refusal = gpu.take(1 << 60).err().expect("nobody has an exabyte");
        assert!(!refusal.is_empty());
        assert!(
            opened
                .try_memory(PIECE_BYTES)
                .is_some_and(|trial| trial.refusal.is_none())
        );
    }

    #[test]
    fn the_cpu_is_not_tried() {
        assert_eq!(super::super::cpu().try_memory(1), None);
    }
}
