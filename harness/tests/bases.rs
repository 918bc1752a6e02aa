//! The bases that other tests share, made before they run: each import of a Debian takes the lab half a minute.

use rstest::rstest;
use undercroft_harness::{
    outcome::Outcome,
    suite::Suite,
    vm::{Kernel, Wanted, boot, guest_test},
};

#[rstest]
#[case::bookworm(|suite: &Suite| suite.debian.clone())]
#[case::trixie(|suite: &Suite| suite.debian13.clone())]
#[case::busybox(|suite: &Suite| suite.busybox.clone())]
fn a_base_is_made_of(#[case] archive: fn(&Suite) -> std::path::PathBuf) -> Outcome {
    guest_test(|suite| {
        let mut vm = boot(suite, Kernel::Tuned).start()?;
        vm.prepare(&Wanted::new("made", &archive(suite)))?;
        vm.power_off()
    })
}
