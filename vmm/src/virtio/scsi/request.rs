//! What virtio-scsi puts around a command, and task management (virtio 1.2, sections 5.6.6.1 and 5.6.6.2).

use vm_memory::GuestMemoryMmap;

use super::Units;
use super::command::{Command, Done};
use super::sense::Sense;
use super::spec;
use crate::virtio::buffers::Buffers;
use crate::virtio::queue::Chain;

/// Executes the command in a chain; returns how many bytes of the chain were written.
pub(super) fn work(
    units: &Units,
    memory: &GuestMemoryMmap,
    chain: Chain,
    cdb_size: usize,
    sense_size: usize,
) -> u32 {
    let Chain { readable: mut out, writable: mut into, .. } = chain;
    let mut response = into.take((spec::RESPONSE_LENGTH + sense_size) as u64);
    let (head_room, room) = (response.len(), into.len());
    let data = out.len().saturating_sub((spec::REQUEST_LENGTH + cdb_size) as u64);
    let outcome = command(units, memory, &mut out, into, cdb_size);
    let (code, sense, moved) = match outcome {
        Ok(Done::Moved { read, written }) => (spec::S_OK, None, (read, written)),
        Ok(Done::Overrun) => (spec::S_OVERRUN, None, (0, 0)),
        Err(Refusal::Sense(sense)) => (spec::S_OK, Some(sense), (0, 0)),
        Err(Refusal::Response(code)) => (code, None, (0, 0)),
    };
    let (read, written) = moved;
    let mut head = [0; spec::RESPONSE_LENGTH];
    // Chains are shorter than 2^32 bytes, as the queue's iterator sees to; so no count here is longer.
    let residual = ((data - read.min(data)) + (room - written)) as u32;
    head[4..8].copy_from_slice(&residual.to_le_bytes());
    head[11] = code;
    if let Some(sense) = sense {
        let bytes = &sense.data()[..sense_size.min(super::sense::LENGTH)];
        head[..4].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        head[10] = spec::CHECK_CONDITION;
        response.write(memory, &head);
        response.write(memory, bytes);
    } else {
        head[10] = spec::GOOD;
        response.write(memory, &head);
    }
    (head_room + written) as u32
}

enum Refusal {
    Sense(Sense),
    Response(u8),
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Self {
        Self::Sense(sense)
    }
}

fn command(
    units: &Units,
    memory: &GuestMemoryMmap,
    out: &mut Buffers,
    into: Buffers,
    cdb_size: usize,
) -> Result<Done, Refusal> {
    let request =
        out.read_array::<{ spec::REQUEST_LENGTH }>(memory).ok_or(Refusal::Response(spec::S_FAILURE))?;
    if out.len() < cdb_size as u64 {
        return Err(Refusal::Response(spec::S_FAILURE));
    }
    let mut cdb = [0; 16];
    let mut block = out.take(cdb_size as u64);
    block.read(memory, &mut cdb);
    // With no unit at all, the target is not there, which spares the guest's scan at boot further questions.
    let lun = match address(&request) {
        Some(lun) if units.iter().any(Option::is_some) => lun,
        _ => return Err(Refusal::Response(spec::S_BAD_TARGET)),
    };
    Ok(Command { units, lun, cdb: &cdb, memory, out: std::mem::take(out), into }.execute()?)
}

/// The unit that a request's first bytes name: target 0, flat space addressing.
fn address(request: &[u8; spec::REQUEST_LENGTH]) -> Option<u8> {
    match request[..4] {
        [1, 0, 0 | 0x40, lun] => Some(lun),
        _ => None,
    }
}

/// Answers a request on the control queue. By then every command that was in the request queue has ended, so there is
/// never a task left to manage.
pub(super) fn control(memory: &GuestMemoryMmap, chain: Chain) -> u32 {
    let Chain { mut readable, mut writable, .. } = chain;
    let kind = readable.read_array(memory).map(u32::from_le_bytes);
    let written = match kind {
        Some(spec::T_TMF) => {
            let known =
                readable.read_array(memory).is_some_and(|kind| u32::from_le_bytes(kind) <= spec::TMF_LAST);
            writable.write(memory, &[if known { spec::S_OK } else { spec::S_FUNCTION_REJECTED }])
        }
        // No events are ever sent: none are there to subscribe to.
        Some(spec::T_AN_QUERY | spec::T_AN_SUBSCRIBE) => writable.write(memory, &[0, 0, 0, 0, spec::S_OK]),
        _ => 0,
    };
    written as u32
}
