//! Any program, and those of the corpus, against every device.

use std::fmt;
use std::path::PathBuf;

use proptest::prelude::*;

use super::{TARGETS, run};

/// A program that is shown as `xxd -r -p` takes it, to become a file of the corpus.
#[derive(Clone)]
struct Bytes(Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Seeds and what was found by fuzzing, by target.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/hostile").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn replay(target: &str) {
    let programs = corpus(target);
    assert!(!programs.is_empty(), "no seeds for {target}");
    for (path, program) in programs {
        // Shown if it fails.
        println!("{}", path.display());
        run(target, &program);
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];
        $(mod $name {
            use super::*;

            #[test]
            fn the_corpus() {
                replay(stringify!($name));
            }

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(CASES))]
                #[test]
                fn any_program(program in prop::collection::vec(any::<u8>(), 0..LONGEST).prop_map(Bytes)) {
                    run(stringify!($name), &program.0);
                }
            }
        })*
    };
}

const CASES: u32 = 256;
const LONGEST: usize = 600;

targets! { transport block scsi vsock balloon rng console net fs }

#[test]
fn every_target_is_tested() {
    assert!(TARGETS.iter().map(|target| target.0).eq(TESTED.iter().copied()));
}

/// Kernel files are no guest's, but as little to be believed; `fuzz/` has a target for them, too.
#[test]
fn kernel_files_are_loaded_within_memory_or_refused() {
    const RAM: u64 = 32 << 20;
    let mut loaded = 0;
    for (path, _) in corpus("kernel") {
        let memory = crate::memory::map(RAM >> 20, None).unwrap();
        match crate::boot::load_kernel(&path, &memory) {
            Ok(image) => {
                assert!(image.entry < image.end && image.end <= RAM, "{}", path.display());
                loaded += 1;
            }
            Err(error) => println!("{}: {error}", path.display()),
        }
    }
    assert!(loaded >= 5, "good ones are among them");
}
