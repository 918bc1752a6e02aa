//! What the lab's client, broker and agent have in common.
//!
//! The lab is a QEMU that emulates a processor with SVM (L1), a Linux in it with a real KVM, and three parties:
//!
//! | party | where | does |
//! | --- | --- | --- |
//! | client | the host, in `cargo xtask` or a test | runs one command: one connection to the broker's unix socket |
//! | broker | the host, one process per lab, this crate's program | keeps QEMU and virtiofsd alive, hands frames on |
//! | agent | PID 1 of L1, this crate's program | mounts the host's files, starts commands, moves their bytes |
//!
//! All speak the [`wire`] format. Flow is controlled from end to end: a sender has [`wire::WINDOW`] bytes of credit on
//! each stream of each command, and gets more only as the reader's side has got rid of what it had. So the broker's
//! queues are bounded although it never refuses a byte, and a client that does not read stops nobody but itself.

pub mod launch;
pub mod pump;
pub mod wire;
