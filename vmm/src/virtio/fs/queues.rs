//! What is done with the queues while the driver works: nothing but interrupts, as long as there is a back end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::super::complaints::complain;
use super::super::device::Interrupt;
use super::super::event_loop::{Handler, Registration};
use super::super::queue::{Chain, VirtQueue, work_off};
use super::spec;
use crate::vhost_user::BackendError;

/// Tokens: the back end has given something back to a queue, the first or the second,
pub(super) const CALL: u32 = 0;
/// its socket was closed,
const GONE: u32 = 2;
/// and, afterwards, the driver has put something into a queue.
const DOORBELL: u32 = 3;

pub(super) struct Queues {
    pub(super) tag: String,
    pub(super) queues: [VirtQueue; 2],
    pub(super) calls: [EventFd; 2],
    /// The back end's.
    pub(super) socket: Option<OwnedFd>,
    pub(super) registration: Registration,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) is_gone: Arc<AtomicBool>,
}

impl Queues {
    /// Watches the back end; takes its place if it is gone.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        match &self.socket {
            Some(socket) if !self.is_gone.load(Ordering::Acquire) => {
                // What it says without being asked is not listened to.
                self.registration.watch(socket, GONE, EventSet::READ_HANG_UP)
            }
            _ => self.take_over(),
        }
    }

    /// Watches nothing any more.
    pub(super) fn end(&mut self) {
        for call in &self.calls {
            self.registration.forget(call);
        }
        for queue in &self.queues {
            self.registration.forget(queue.doorbell());
        }
        if let Some(socket) = &self.socket {
            self.registration.forget(socket);
        }
    }

    fn take_over(&mut self) -> io::Result<()> {
        for (queue, token) in self.queues.iter_mut().zip(DOORBELL..) {
            queue.take_over();
            self.registration.watch(queue.doorbell(), token, EventSet::IN)?;
            queue.ring();
        }
        // It may have given something back and not said so.
        self.interrupt.used();
        Ok(())
    }
}

impl Handler for Queues {
    fn ready(&mut self, token: u32, _: EventSet) {
        if token == GONE {
            if let Some(socket) = &self.socket {
                self.registration.forget(socket);
            }
            if !self.is_gone.swap(true, Ordering::AcqRel) {
                complain(format_args!("the folder {:?} is gone: {}", self.tag, BackendError::Ended));
                if let Err(error) = self.take_over() {
                    complain(format_args!("the folder {:?} cannot be answered for: {error}", self.tag));
                    self.interrupt.needs_reset();
                }
            }
        } else if let Some(queue) = token.checked_sub(DOORBELL).and_then(|n| self.queues.get_mut(n as usize))
        {
            queue.heard();
            work_off(queue, |memory, chain| Some(refuse(memory, chain)));
        } else if let Some(call) = self.calls.get((token - CALL) as usize) {
            let _ = call.read();
            self.interrupt.used();
        }
    }
}

/// Answers a request with ENOTCONN, which is what FUSE says of a file system whose server has ended; gives the bytes written.
/// Some requests (FUSE_FORGET) have no answer.
fn refuse(memory: &GuestMemoryMmap, mut chain: Chain) -> u32 {
    let request: [u8; spec::FUSE_HEADER_LENGTH] = chain.readable.read_array(memory).unwrap_or_default();
    if chain.writable.len() < spec::FUSE_HEADER_LENGTH as u64 {
        return 0;
    }
    let mut answer = [0; spec::FUSE_HEADER_LENGTH];
    answer[..4].copy_from_slice(&(spec::FUSE_HEADER_LENGTH as u32).to_le_bytes());
    answer[4..8].copy_from_slice(&(-libc::ENOTCONN).to_le_bytes());
    answer[spec::FUSE_UNIQUE..].copy_from_slice(&request[spec::FUSE_UNIQUE..]);
    chain.writable.write(memory, &answer) as u32
}
