//! What Criterion measures by here: a clock that no daemon sets, which in the ruler's machine counts instructions; and the
//! host's memory.

use std::time::Duration;

use criterion::{
    Criterion, Throughput,
    measurement::{Measurement, ValueFormatter},
};
use rustix::time::{ClockId, clock_gettime};
use undercroft_ruler_scenario::Result;

/// The environment variable that names the [`Setting`](undercroft_ruler_scenario::Setting).
pub(crate) const SETTING: &str = "UNDERCROFT_BENCH_SETTING";
/// Set where the clock advances by one nanosecond an instruction.
const INSTRUCTIONS: &str = "UNDERCROFT_BENCH_INSTRUCTIONS";

/// A Criterion that takes few samples of things that take long.
pub(crate) fn criterion<M: Measurement + 'static>(measurement: M) -> Criterion<M> {
    // The least that Criterion takes, and resamples that an emulated floating point unit can do.
    let (short, samples, resamples) = (Duration::from_millis(1), 10, 1001);
    Criterion::default()
        .without_plots()
        .sample_size(samples)
        .nresamples(resamples)
        .warm_up_time(short)
        .measurement_time(short)
        .with_measurement(measurement)
        .configure_from_args()
}

/// Adds up what that many times give.
///
/// # Panics
/// If one of them fails.
pub(crate) fn sum(times: u64, mut once: impl FnMut() -> Result<u64>) -> u64 {
    (0..times).map(|_| once().expect("what is measured works")).sum()
}

/// CLOCK_MONOTONIC_RAW in nanoseconds, which are instructions in the ruler's machine.
pub(crate) struct Clock(Unit);

impl Clock {
    /// In the unit of where this runs.
    pub(crate) fn here() -> Self {
        let instructions = std::env::var_os(INSTRUCTIONS).is_some();
        Self(if instructions { Unit::Instructions } else { Unit::Seconds })
    }

    /// What one thing takes.
    pub(crate) fn time(what: impl FnOnce() -> Result<()>) -> Result<u64> {
        let begin = now();
        what()?;
        Ok(now() - begin)
    }
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::MonotonicRaw);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000
        + u64::try_from(now.tv_nsec).unwrap_or_default()
}

impl Measurement for Clock {
    type Intermediate = u64;
    type Value = u64;

    fn start(&self) -> u64 {
        now()
    }

    fn end(&self, begin: u64) -> u64 {
        now() - begin
    }

    fn add(&self, a: &u64, b: &u64) -> u64 {
        a + b
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &self.0
    }
}

/// The host's memory in KiB. It has no begin and no end: only `iter_custom` makes sense with it.
pub(crate) struct Memory;

impl Measurement for Memory {
    type Intermediate = ();
    type Value = u64;

    fn start(&self) {}

    fn end(&self, (): ()) -> u64 {
        0
    }

    fn add(&self, a: &u64, b: &u64) -> u64 {
        a + b
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, value: &u64) -> f64 {
        // Criterion divides by it.
        (*value as f64).max(f64::MIN_POSITIVE)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Unit::Kibibytes
    }
}

/// What a value is called.
enum Unit {
    Seconds,
    Instructions,
    Kibibytes,
}

impl Unit {
    /// A factor and a name for values of this size.
    fn scale(&self, typical: f64) -> (f64, &'static str) {
        match self {
            Self::Seconds if typical < 1e3 => (1.0, "ns"),
            Self::Seconds if typical < 1e6 => (1e-3, "µs"),
            Self::Seconds => (1e-6, "ms"),
            Self::Instructions if typical < 1e6 => (1e-3, "thousand instructions"),
            Self::Instructions => (1e-6, "M instructions"),
            Self::Kibibytes => (1.0, "KiB"),
        }
    }
}

impl ValueFormatter for Unit {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        let (factor, name) = self.scale(typical);
        values.iter_mut().for_each(|value| *value *= factor);
        name
    }

    fn scale_throughputs(&self, _typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let amount = match throughput {
            Throughput::Bytes(bytes) | Throughput::BytesDecimal(bytes) => *bytes as f64,
            Throughput::Elements(elements) => *elements as f64,
            _ => 1.0,
        };
        match self {
            // Bytes a nanosecond are gigabytes a second.
            Self::Seconds => {
                values.iter_mut().for_each(|value| *value = amount / *value * 1e3);
                "MB/s"
            }
            _ => {
                values.iter_mut().for_each(|value| *value /= amount);
                "instructions/byte"
            }
        }
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        match self {
            Self::Seconds => "ns",
            Self::Instructions => "instructions",
            Self::Kibibytes => "KiB",
        }
    }
}
