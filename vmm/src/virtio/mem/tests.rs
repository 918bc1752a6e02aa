//! virtio-mem, as its driver and as a hostile one see it.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::{BLOCK, Mem, MemControl, request::Blocks, spec};
use crate::bus::Device;
use crate::virtio::testing::{Driver, MEMORY, Part};
use crate::virtio::{EventLoop, mmio};

/// The region lies in the upper half of the test driver's memory: eight blocks, of which the last is never plugged.
const REGION: u64 = MEMORY / 2;
const BLOCKS: u64 = 8;

fn device() -> (Driver, EventLoop, MemControl) {
    let events = EventLoop::new().unwrap();
    let (device, control) =
        Mem::new(GuestAddress(REGION), BLOCKS * BLOCK, (BLOCKS - 1) * BLOCK, events.clone());
    (Driver::started(Box::new(device)), events, control)
}

fn request(kind: u16, address: u64, blocks: u16) -> [u8; spec::REQUEST_LENGTH] {
    let mut bytes = [0; spec::REQUEST_LENGTH];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
    bytes
}

/// Sends a request; returns the response's type and state.
fn send(driver: &mut Driver, events: &EventLoop, kind: u16, block: u64, blocks: u16) -> (u16, u16) {
    let request = request(kind, REGION + block * BLOCK, blocks);
    let (_, places) = driver.add(0, &[Part::Out(&request), Part::In(spec::RESPONSE_LENGTH as u32)]);
    driver.ring(0);
    events.settle();
    assert_eq!(driver.used(0)[0].1 as usize, spec::RESPONSE_LENGTH);
    let bytes = driver.bytes(places[1], spec::RESPONSE_LENGTH);
    (u16::from_le_bytes([bytes[0], bytes[1]]), u16::from_le_bytes([bytes[8], bytes[9]]))
}

fn field(driver: &Driver, index: u64) -> u64 {
    let mut bytes = [0; 8];
    driver.transport.read(mmio::CONFIG + 8 * index, &mut bytes[..4]);
    driver.transport.read(mmio::CONFIG + 8 * index + 4, &mut bytes[4..]);
    u64::from_le_bytes(bytes)
}

#[test]
fn blocks_come_as_the_host_asks_and_go_empty() {
    let (mut driver, events, control) = device();
    assert_eq!(
        [0, 2, 3, 4, 5, 6].map(|index| field(&driver, index)),
        [BLOCK, REGION, BLOCKS * BLOCK, BLOCKS * BLOCK, 0, 0]
    );
    assert_eq!(send(&mut driver, &events, spec::REQ_PLUG, 0, 1).0, spec::RESP_NACK, "nobody asked for any");

    let generation = driver.read(mmio::CONFIG_GENERATION);
    control.request(4 * BLOCK + 1).unwrap();
    assert_ne!(driver.read(mmio::CONFIG_GENERATION), generation);
    assert_eq!(driver.read(mmio::INTERRUPT_STATUS) & mmio::INTERRUPT_CONFIG_CHANGE, 2);
    assert_eq!(field(&driver, 6), 4 * BLOCK);
    assert_eq!(send(&mut driver, &events, spec::REQ_PLUG, 0, 3).0, spec::RESP_ACK);
    assert_eq!(send(&mut driver, &events, spec::REQ_PLUG, 3, 2).0, spec::RESP_NACK);
    assert_eq!(send(&mut driver, &events, spec::REQ_PLUG, 6, 1).0, spec::RESP_ACK);
    assert_eq!((control.plugged(), field(&driver, 5)), (4 * BLOCK, 4 * BLOCK));
    for (block, blocks, state) in
        [(0, 3, spec::STATE_PLUGGED), (3, 3, spec::STATE_UNPLUGGED), (0, 4, spec::STATE_MIXED)]
    {
        assert_eq!(send(&mut driver, &events, spec::REQ_STATE, block, blocks), (spec::RESP_ACK, state));
    }

    driver.memory.write_slice(&vec![7; (2 * BLOCK) as usize], GuestAddress(REGION)).unwrap();
    control.request(BLOCK).unwrap();
    assert_eq!(send(&mut driver, &events, spec::REQ_UNPLUG, 1, 2).0, spec::RESP_ACK);
    assert_eq!(driver.bytes(REGION + BLOCK - 1, 2), [7, 0], "what is unplugged is dropped, and nothing else");
    assert_eq!(control.plugged(), 2 * BLOCK);
    assert_eq!(send(&mut driver, &events, spec::REQ_UNPLUG_ALL, 77, 0).0, spec::RESP_ACK);
    assert_eq!((control.plugged(), driver.bytes(REGION, 1)[0]), (0, 0));
    assert_eq!(control.request(BLOCKS * BLOCK), Err((BLOCKS - 1) * BLOCK));
    assert!(!driver.needs_reset());
}

#[test]
fn requests_that_name_no_blocks_are_errors() {
    let (mut driver, events, control) = device();
    control.request(4 * BLOCK).unwrap();
    driver.memory.write_slice(&[7], GuestAddress(REGION - 1)).unwrap();
    assert_eq!(send(&mut driver, &events, spec::REQ_PLUG, 2, 1).0, spec::RESP_ACK);
    for (kind, block, blocks) in [
        (spec::REQ_PLUG, 0, 0),
        (spec::REQ_PLUG, 2, 1),
        (spec::REQ_PLUG, 1, 2),
        (spec::REQ_PLUG, BLOCKS - 1, 2),
        (spec::REQ_PLUG, BLOCKS, 1),
        (spec::REQ_PLUG, 1 << 40, 1),
        (spec::REQ_PLUG, 0, u16::MAX),
        (spec::REQ_UNPLUG, 1, 1),
        (spec::REQ_UNPLUG, 2, 2),
        (spec::REQ_STATE, 0, u16::MAX),
        (4, 0, 1),
        (u16::MAX, 0, 1),
    ] {
        let response = send(&mut driver, &events, kind, block, blocks);
        assert_eq!(response.0, spec::RESP_ERROR, "{kind} {block} {blocks}");
    }
    assert_eq!((control.plugged(), driver.bytes(REGION - 1, 1)[0]), (BLOCK, 7));
    // Too short a request, and no room for its answer.
    driver.add(0, &[Part::Out(&[0; 23]), Part::In(10)]);
    driver.add(0, &[Part::Out(&request(spec::REQ_STATE, REGION, 1)), Part::In(3)]);
    driver.add(0, &[Part::Out(&request(spec::REQ_UNPLUG_ALL, 0, 0))]);
    driver.ring(0);
    events.settle();
    assert_eq!(driver.used(0).iter().map(|used| used.1).collect::<Vec<_>>(), [10, 3, 0]);
    assert_eq!(control.plugged(), 0);
    assert!(!driver.needs_reset());
}

#[test]
fn a_reset_leaves_the_blocks_as_they_are() {
    let (mut driver, events, control) = device();
    control.request(4 * BLOCK).unwrap();
    assert_eq!(send(&mut driver, &events, spec::REQ_PLUG, 0, 4).0, spec::RESP_ACK);
    driver.write(mmio::STATUS, 0);
    control.request(2 * BLOCK).unwrap();
    driver.start(!(1 << 29));
    assert_eq!((field(&driver, 5), field(&driver, 6)), (4 * BLOCK, 2 * BLOCK));
    assert_eq!(send(&mut driver, &events, spec::REQ_UNPLUG_ALL, 0, 0).0, spec::RESP_ACK);
    assert_eq!(control.plugged(), 0);
}

proptest! {
    /// Whatever is asked, no more is plugged than was requested, only the region is dropped, and the count is that of the
    /// blocks.
    #[test]
    fn no_sequence_of_requests_breaks_the_account(
        requests in prop::collection::vec((0..6_u16, -2..10_i64, 0..12_u16, prop::bool::weighted(0.1)), 0..200)
    ) {
        let mut blocks = Blocks::new(REGION, BLOCKS * BLOCK, (BLOCKS - 1) * BLOCK);
        let mut most = 0;
        for (index, (kind, block, count, off)) in requests.into_iter().enumerate() {
            let wanted = index as u64 % BLOCKS * BLOCK;
            blocks.request(wanted).unwrap();
            most = wanted.max(blocks.plugged_bytes());
            let address = REGION.wrapping_add_signed(block * BLOCK as i64 + i64::from(off));
            let mut dropped = Ok(());
            blocks.answer(&request(kind, address, count), |address, length| {
                if address < REGION || address + length > REGION + BLOCKS * BLOCK {
                    dropped = Err((address, length));
                }
                Ok(())
            });
            prop_assert_eq!(dropped, Ok(()));
            prop_assert!(blocks.plugged_bytes() <= most);
        }
        prop_assert!(blocks.plugged_bytes() <= most);
    }
}
