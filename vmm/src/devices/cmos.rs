//! A minimal real-time clock (MC146818) for kernels that look for one.
//!
//! A kernel with ACPI is told by the FADT that there is none, and takes the time from kvmclock. One without ACPI reads the
//! clock all the same: with nothing there, register A reads as "update in progress" for ever, which is polled for more
//! than a second. So this one has the time, no update in progress, and no alarm. Times are in UTC.

use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::bus::Device;

const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
/// Register A: 32.768 kHz, and no update in progress.
const A_RUNNING: u8 = 0x26;
/// Register B: 24-hour clock, BCD.
const B_24_HOURS: u8 = 0x02;
/// Register D: the battery is good.
const D_VALID: u8 = 0x80;

/// The clock, at an index port and a data port.
#[derive(Debug, Default)]
pub struct Cmos {
    index: Mutex<u8>,
}

/// A date of the Gregorian calendar from days since 1970-01-01: (year, month, day).
fn date(days: u64) -> (u64, u64, u64) {
    // Years counted from March, in cycles of 400 years of 146 097 days, so that the leap day is a year's last.
    let shifted = days + 719_468;
    let day_of_cycle = shifted % 146_097;
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (shifted / 146_097 * 400 + year_of_cycle + u64::from(month <= 2), month, day)
}

fn bcd(value: u64) -> u8 {
    ((value / 10 % 10) * 16 + value % 10) as u8
}

/// What register `index` reads at `seconds` since 1970.
fn register(index: u8, seconds: u64) -> u8 {
    let (year, month, day) = date(seconds / 86_400);
    match index {
        0 => bcd(seconds % 60),
        2 => bcd(seconds / 60 % 60),
        4 => bcd(seconds / 3_600 % 24),
        // 1970-01-01 was a Thursday; Sunday is 1.
        6 => bcd((seconds / 86_400 + 4) % 7 + 1),
        7 => bcd(day),
        8 => bcd(month),
        9 => bcd(year % 100),
        CENTURY => bcd(year / 100),
        REGISTER_A => A_RUNNING,
        REGISTER_B => B_24_HOURS,
        REGISTER_D => D_VALID,
        _ => 0,
    }
}

impl Device for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let index = *self.index.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        data.fill(0);
        data[0] = if offset == 0 { index } else { register(index, now) };
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // Bit 7 of the index masks NMIs, which nothing here raises. The clock cannot be set.
        if let (0, [index]) = (offset, data) {
            *self.index.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = index & 0x7f;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(11_017), (2000, 3, 1));
        assert_eq!(date(20_453), (2025, 12, 31));
        assert_eq!(date(47_540), (2100, 2, 28));
        assert_eq!(date(47_541), (2100, 3, 1));
    }

    #[test]
    fn no_update_is_ever_in_progress() {
        assert_eq!(register(REGISTER_A, 12_345) & 0x80, 0);
        assert_eq!(register(0, 59), 0x59);
        assert_eq!(register(CENTURY, 0), 0x19);
        assert_eq!(register(6, 0), 5);
    }
}
