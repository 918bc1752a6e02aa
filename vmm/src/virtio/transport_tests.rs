//! The registers, as a driver sees them; and drivers that have lost their senses.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use virtio_queue::QueueT;

use super::device::{ActivateError, Activation, VirtioDevice};
use super::queue::{VirtQueue, work_off};
use super::testing::{Driver, INDIRECT, MEMORY, NEXT, Part, Raw, WRITE};
use super::{lock, mmio};
use crate::bus::Device;

/// A device that echoes what it reads, when the test tells it to.
struct Echo(Arc<Mutex<Vec<VirtQueue>>>);

fn echo() -> (Driver, Arc<Mutex<Vec<VirtQueue>>>) {
    let queues = Arc::default();
    (Driver::new(Box::new(Echo(Arc::clone(&queues)))), queues)
}

impl VirtioDevice for Echo {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 64]
    }

    fn features(&self) -> u64 {
        1 << 29 | 1 << 28 | 1
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config(b"configuration", offset, data);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        assert!(activation.queues.iter().all(|(queue, _)| queue.ready()));
        *lock(&self.0) = vec![VirtQueue::take(&mut activation, 0)?, VirtQueue::take(&mut activation, 1)?];
        Ok(())
    }

    fn reset(&mut self) {
        lock(&self.0).clear();
    }
}

/// Works off queue `index`; returns what was read from it.
fn work(queues: &Mutex<Vec<VirtQueue>>, index: usize) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    if let Some(queue) = lock(queues).get_mut(index) {
        queue.heard();
        work_off(queue, |memory, mut chain| {
            let mut bytes = vec![0; chain.readable.len() as usize];
            chain.readable.read(memory, &mut bytes);
            let written = chain.writable.write(memory, &bytes);
            seen.push(bytes);
            Some(written as u32)
        });
    }
    seen
}

#[test]
fn a_driver_negotiates_and_exchanges_buffers() {
    for wanted in [u64::MAX, !(1 << 29)] {
        let (mut driver, queues) = echo();
        assert_eq!(driver.read(mmio::MAGIC_VALUE), 0x7472_6976);
        assert_eq!((driver.read(mmio::DEVICE_VERSION), driver.read(mmio::DEVICE_ID)), (2, 42));
        driver.start(wanted);
        assert_eq!(driver.read(mmio::STATUS), 15);
        for round in 0..40_u8 {
            let (head, places) = driver.add(0, &[Part::Out(&[round; 3]), Part::Out(b"x"), Part::In(8)]);
            driver.ring(0);
            assert_eq!(work(&queues, 0), [vec![round, round, round, b'x']]);
            assert_eq!(driver.used(0), [(head, 4)]);
            assert_eq!(driver.bytes(places[2], 4), [round, round, round, b'x']);
        }
        assert_eq!(driver.read(mmio::INTERRUPT_STATUS), mmio::INTERRUPT_USED_BUFFER);
        driver.write(mmio::INTERRUPT_ACK, mmio::INTERRUPT_USED_BUFFER);
        assert_eq!(driver.read(mmio::INTERRUPT_STATUS), 0);
        // And once more after a reset.
        driver.write(mmio::STATUS, 0);
        assert_eq!(driver.read(mmio::STATUS), 0);
        driver.start(wanted);
        driver.add(1, &[Part::Out(b"again")]);
        assert_eq!(work(&queues, 1), [b"again"]);
    }
}

#[test]
fn a_placeholder_is_there_and_is_nothing() {
    let slot = super::MmioTransport::placeholder();
    let read = |register| {
        let mut data = [0xff; 4];
        slot.read(register, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!((read(0), read(4), read(8)), (mmio::MAGIC, 2, 0));
    slot.write(mmio::STATUS, &[1, 0, 0, 0]);
    assert_eq!(read(mmio::STATUS), 0);
    assert!(slot.doorbells().is_empty() && slot.interrupt().is_none());
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_not_accepted() {
    for features in [[0_u32, 0], [1, 0], [2, 1], [0, 3]] {
        let (driver, _) = echo();
        driver.write(mmio::STATUS, 3);
        for (select, half) in (0..).zip(features) {
            driver.write(mmio::DRIVER_FEATURES_SEL, select);
            driver.write(mmio::DRIVER_FEATURES, half);
        }
        driver.write(mmio::STATUS, 11);
        assert_eq!(driver.read(mmio::STATUS), 3, "FEATURES_OK stays clear for {features:x?}");
        driver.write(mmio::STATUS, 15);
        assert!(driver.needs_reset(), "DRIVER_OK before FEATURES_OK");
    }
}

#[test]
fn queues_are_dead_after_driver_ok() {
    for (register, value) in [
        (mmio::QUEUE_NUM, 64),
        (mmio::QUEUE_READY, 0),
        (mmio::QUEUE_DESC_LOW, 0x2000),
        (mmio::QUEUE_DEVICE_HIGH, 1),
        (mmio::DRIVER_FEATURES, 0),
    ] {
        let (mut driver, queues) = echo();
        driver.start(u64::MAX);
        driver.write(mmio::QUEUE_SEL, 0);
        let before = lock(&queues)[0].size();
        driver.write(register, value);
        assert!(driver.needs_reset());
        assert_eq!(driver.read(mmio::INTERRUPT_STATUS), mmio::INTERRUPT_CONFIG_CHANGE);
        assert_eq!(lock(&queues)[0].size(), before);
        driver.write(mmio::STATUS, 0);
        assert!(!driver.needs_reset());
    }
}

#[test]
fn queues_that_do_not_lie_in_memory_are_refused() {
    for (register, value) in [
        (mmio::QUEUE_DESC_LOW, MEMORY as u32 - 16),
        (mmio::QUEUE_DRIVER_HIGH, 1),
        (mmio::QUEUE_DEVICE_HIGH, u32::MAX),
        (mmio::QUEUE_DEVICE_LOW, 2),
        (mmio::QUEUE_NUM, 3),
        (mmio::QUEUE_NUM, 32),
        (mmio::QUEUE_NUM, 0x1_0010),
    ] {
        let (mut driver, queues) = echo();
        driver.negotiate(u64::MAX);
        driver.set_up_queue(1);
        driver.write(mmio::QUEUE_SEL, 0);
        driver.write(register, value);
        driver.write(mmio::QUEUE_READY, 1);
        assert!(driver.needs_reset(), "{register:#x} = {value:#x}");
        driver.write(mmio::STATUS, 15);
        assert!(lock(&queues).is_empty(), "it was not activated");
    }
}

#[test]
fn the_configuration_is_read_at_any_width() {
    let (driver, _) = echo();
    let mut byte = [0];
    driver.transport.read(0x103, &mut byte);
    assert_eq!(&byte, b"f");
    let mut long = [0; 8];
    driver.transport.read(0x108, &mut long);
    assert_eq!(&long, b"ation\0\0\0");
    driver.transport.read(u64::MAX, &mut long);
    assert_eq!(long, [0; 8]);
    let generation = driver.read(mmio::CONFIG_GENERATION);
    driver.interrupt().config_changed();
    assert_ne!(driver.read(mmio::CONFIG_GENERATION), generation);
}

#[test]
fn chains_that_are_none_stop_the_device() {
    let good = Raw { address: 0x40_0000, length: 16, flags: 0, next: 0 };
    let cases: [(&str, Vec<Raw>, u16); 9] = [
        ("a circle", vec![Raw { flags: NEXT, next: 0, ..good }], 0),
        ("a next that is no descriptor", vec![Raw { flags: NEXT, next: 16, ..good }], 0),
        ("a head that is no descriptor", vec![good], 16),
        ("outside memory", vec![Raw { address: MEMORY, ..good }], 0),
        ("half outside memory", vec![Raw { address: MEMORY - 8, ..good }], 0),
        ("past the address space", vec![Raw { address: u64::MAX - 4, ..good }], 0),
        ("too long", vec![Raw { flags: NEXT, next: 1, length: MEMORY as u32, address: 0 }; 2], 0),
        ("a crooked table", vec![Raw { flags: INDIRECT, length: 15, ..good }], 0),
        ("reading after writing", vec![Raw { flags: WRITE | NEXT, next: 1, ..good }, good], 0),
    ];
    for (name, raw, head) in cases {
        let (mut driver, queues) = echo();
        driver.start(u64::MAX);
        driver.describe(0, 0, &raw);
        driver.offer(0, head);
        driver.ring(0);
        assert!(work(&queues, 0).is_empty(), "{name}");
        assert!(driver.needs_reset(), "{name}");
        driver.add(0, &[Part::Out(b"more")]);
        assert!(work(&queues, 0).is_empty() && driver.used(0).is_empty(), "{name}: nothing more is done");
    }
}

#[test]
fn indirect_tables_may_be_longer_than_the_queue_but_not_circular() {
    let (mut driver, queues) = echo();
    driver.start(u64::MAX);
    let table = driver.buffer(16 * 100);
    for i in 0..100_u16 {
        let flags = if i < 99 { NEXT } else { 0 };
        let raw = Raw { address: 0x40_0000 + u64::from(i), length: 1, flags, next: i + 1 };
        driver.describe_at(table + 16 * u64::from(i), &raw);
    }
    driver.describe(0, 0, &[Raw { address: table, length: 1600, flags: INDIRECT, next: 0 }]);
    driver.offer(0, 0);
    assert_eq!(work(&queues, 0)[0].len(), 100);
    // A table within a table.
    driver.describe_at(table, &Raw { address: table, length: 1600, flags: INDIRECT, next: 0 });
    driver.offer(0, 0);
    assert!(work(&queues, 0).is_empty() && driver.needs_reset());
}

#[test]
fn an_available_index_that_runs_ahead_stops_the_device_and_spins_nowhere() {
    let (mut driver, queues) = echo();
    driver.start(u64::MAX);
    driver.set_available(0, 17);
    driver.ring(0);
    assert!(work(&queues, 0).is_empty());
    assert!(driver.needs_reset());
}

proptest! {
    #[test]
    fn any_register_writes_leave_the_transport_standing(
        writes in prop::collection::vec(
            (prop_oneof![(0_u64..0x110).prop_map(|n| n & !3), any::<u64>()],
             prop_oneof![0_u32..20, any::<u32>()]), 0..60),
    ) {
        let (driver, queues) = echo();
        for (register, value) in writes {
            driver.write(register, value);
            driver.read(register);
            work(&queues, 0);
        }
    }

    #[test]
    fn any_descriptors_leave_the_device_standing(
        raw in prop::collection::vec(
            (prop_oneof![0_u64..MEMORY + 64, any::<u64>()], prop_oneof![0_u32..64, any::<u32>()], 0_u16..8, 0_u16..20),
            16),
        heads in prop::collection::vec(0_u16..18, 1..16),
    ) {
        let (mut driver, queues) = echo();
        driver.start(u64::MAX);
        let raw: Vec<_> = raw
            .into_iter()
            .map(|(address, length, flags, next)| Raw { address, length, flags, next })
            .collect();
        driver.describe(0, 0, &raw);
        for head in heads {
            driver.offer(0, head);
        }
        driver.ring(0);
        for bytes in work(&queues, 0) {
            prop_assert!(bytes.len() as u64 <= u64::from(u32::MAX));
        }
        driver.used(0);
    }
}
