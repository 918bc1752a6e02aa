//! Connects to servers in a guest by the host's loopback, in the ruler's machine, each part between two markers:
//!
//! | span | what is in it |
//! | --- | --- |
//! | `to-guest` | iperf3: so many MiB to the guest, over one connection |
//! | `from-guest` | the same the other way |
//! | `connections` | so many connections, one after the other: a question, an answer, the end |

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use undercroft::{NetworkOptions, Pipes, Program, Session};
use undercroft_ruler_scenario::{
    Result, Stage, span,
    traffic::{ANSWERER, ANSWERER_PROGRAM, Carrier, IPERF, IPERF_PROGRAM, QUESTION, Traffic},
};

/// How long a guest may take until its servers answer, by the machine's clock.
const PATIENCE: Duration = Duration::from_secs(60);
/// Connections between two words about them.
const SAY: u32 = 500;
/// Connections that are made before they count.
const WARM: u32 = 100;

fn main() -> ExitCode {
    let outcome = match std::env::args_os().nth(1) {
        Some(path) => Traffic::read(Path::new(&path)).and_then(|traffic| play(&traffic)),
        None => Err("expected: TRAFFIC.json".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("traffic: {error}");
            ExitCode::FAILURE
        }
    }
}

fn play(traffic: &Traffic) -> Result<()> {
    busybox(&["ip", "link", "set", "lo", "up"])?;
    // What carries it ends with this value.
    let carried = Carried::start(&traffic.carrier)?;
    wait_for_answers()?;
    // The first of each is not counted.
    for _ in 0..2 {
        span("to-guest", || iperf(traffic.mebibytes, false))?;
        span("from-guest", || iperf(traffic.mebibytes, true))?;
    }
    short_ones(WARM)?;
    span("connections", || short_ones(traffic.connections))?;
    carried.end()
}

/// What carries the traffic, and what runs for it.
enum Carried {
    Undercroft { stage: Box<Stage>, servers: Vec<Session> },
    Other(Vec<Reaped>),
}

impl Carried {
    fn start(carrier: &Carrier) -> Result<Self> {
        match carrier {
            Carrier::Undercroft(setting) => {
                let network = NetworkOptions { localhost: true, ..NetworkOptions::default() };
                let mut stage = Stage::start_with(setting, network)?;
                let root = stage.root()?;
                let distribution = stage.launch("one", &root)?;
                let run = |words: &[&str]| distribution.exec(&Program::new(words.to_vec()), Pipes::ALL);
                let servers = vec![run(&[IPERF_PROGRAM, "-s"])?, run(&[ANSWERER_PROGRAM])?];
                Ok(Self::Undercroft { stage: Box::new(stage), servers })
            }
            Carrier::Other { helper, monitor } => {
                let mut running = Vec::new();
                if let Some((helper, socket)) = helper {
                    running.push(Reaped::spawn(helper)?);
                    let end = Instant::now() + PATIENCE;
                    while !socket.exists() {
                        if Instant::now() > end {
                            return Err(format!("{} was not made by {helper:?}", socket.display()).into());
                        }
                        thread::sleep(Duration::from_millis(20));
                    }
                }
                running.push(Reaped::spawn(monitor)?);
                Ok(Self::Other(running))
            }
        }
    }

    fn end(self) -> Result<()> {
        match self {
            Self::Undercroft { stage, servers } => {
                drop(servers);
                stage.power_off()
            }
            Self::Other(running) => {
                drop(running);
                Ok(())
            }
        }
    }
}

/// A process that is killed when it is let go.
struct Reaped(Child);

impl Reaped {
    fn spawn(words: &[String]) -> Result<Self> {
        let (program, arguments) = words.split_first().ok_or("a program has no name")?;
        Ok(Self(Command::new(program).args(arguments).stdin(Stdio::null()).spawn()?))
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Both servers: the answerer is the last that is started.
fn wait_for_answers() -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(()) => break,
            Err(error) if Instant::now() > end => {
                return Err(format!("no answer from the guest: {error}").into());
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
    while iperf(1, false).is_err() {
        if Instant::now() > end {
            return iperf(1, false);
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// One short connection.
fn ask() -> io::Result<()> {
    let address = SocketAddr::from(([127, 0, 0, 1], ANSWERER));
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let question = [b'?'; QUESTION];
    stream.write_all(&question)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer == question { Ok(()) } else { Err(io::Error::other(format!("{} bytes came", answer.len()))) }
}

fn short_ones(number: u32) -> Result<()> {
    for at in 0..number {
        // A machine that says nothing for minutes is taken to stand still.
        if at % SAY == 0 {
            println!("traffic: {at} of {number} connections");
        }
        ask().map_err(|error| format!("connection {at}: {error}"))?;
    }
    Ok(())
}

fn iperf(mebibytes: u32, from_guest: bool) -> Result<()> {
    let (port, size) = (IPERF.to_string(), format!("{mebibytes}M"));
    let mut command = Command::new(IPERF_PROGRAM);
    command.args(["-c", "127.0.0.1", "-p", &port, "-n", &size, "-i", "0"]);
    let output = command.args(from_guest.then_some("-R")).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && said.contains("receiver") {
        return Ok(());
    }
    Err(format!("iperf3: {}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}

fn busybox(words: &[&str]) -> Result<()> {
    let status = Command::new("/bin/busybox").args(words).stdin(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("busybox {words:?}: {status}").into()) }
}
