//! How much memory a process has in RAM beside its guest's, from `/proc/PID/smaps` (proc(5)).

/// Resident KiB of all mappings that are smaller than `guest_mib`.
pub fn beyond_guest_kib(smaps: &str, guest_mib: u64) -> u64 {
    let mut guest = false;
    let mut sum = 0;
    for line in smaps.lines() {
        if let Some(size) = kib(line, "Size:") {
            guest = size >= guest_mib * 1024;
        } else if let Some(resident) = kib(line, "Rss:")
            && !guest
        {
            sum += resident;
        }
    }
    sum
}

fn kib(line: &str, field: &str) -> Option<u64> {
    line.strip_prefix(field)?.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_left_out() {
        let smaps = "55d0-55d1 r-xp 0 00:02 5 /bin/vmm\nSize:   1200 kB\nKernelPageSize: 4 kB\nRss:    800 kB\n\
                     7f00-7f80 rw-s 0 00:01 9 /memfd:guest (deleted)\nSize: 131072 kB\nRss:  40000 kB\n\
                     7ffc-7ffd rw-p 0 00:00 0 [stack]\nSize:    132 kB\nRss:     12 kB\n";
        assert_eq!(beyond_guest_kib(smaps, 128), 812);
        assert_eq!(beyond_guest_kib(smaps, 256), 40_812);
    }
}
