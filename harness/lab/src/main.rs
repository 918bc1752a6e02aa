//! The lab's program: as process 1 the agent in L1, otherwise `undercroft-lab broker LAUNCH`, the process that keeps a lab
//! alive on the host. Nobody needs to call it by hand; `cargo xtask lab` does.

mod agent;
mod broker;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        agent::main()
    }
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [verb, launch] if verb == "broker" => broker::main(launch.as_ref()),
        _ => {
            eprintln!(
                "expected \"broker\" and a launch file; use `cargo xtask lab`, which calls this program"
            );
            ExitCode::from(2)
        }
    }
}
