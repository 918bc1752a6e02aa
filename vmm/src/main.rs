//! The virtual machine monitor as a program.
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut config = undercroft_vmm::MachineConfig::default();
    let mut args = std::env::args().skip(1);
    while let (Some(name), Some(value)) = (args.next(), args.next()) {
        match name.as_str() {
            "--kernel" => config.kernel = value.into(),
            "--initramfs" => config.initramfs = Some(value.into()),
            "--command-line" => config.command_line = value,
            "--cpus" => config.cpus = value.parse().unwrap(),
            _ => return ExitCode::from(2),
        }
    }
    match undercroft_vmm::Machine::new(config).and_then(|machine| machine.run()) {
        Ok(end) => {
            eprintln!("undercroft-vmm: {end}");
            ExitCode::from(end.status())
        }
        Err(error) => {
            eprintln!("undercroft-vmm: {error:?}");
            ExitCode::from(1)
        }
    }
}
