//! Which release a kernel image says it is (`uname -r`).

/// What a vmlinux begins its banner with (`init/version-timestamp.c`).
const BANNER: &[u8] = b"Linux version ";

/// No release is longer (`__NEW_UTS_LEN` in `include/uapi/linux/utsname.h`).
const LONGEST: usize = 64;

/// The release in a vmlinux's banner.
pub(crate) fn of_vmlinux(image: &[u8]) -> Option<String> {
    let mut from = 0;
    loop {
        let at = from + find(&image[from..], BANNER)?;
        from = at + BANNER.len();
        // There are other strings with these words; the banner's are followed by a digit.
        if image.get(from).is_some_and(u8::is_ascii_digit) {
            return word(&image[from..]);
        }
    }
}

/// The release in a bzImage's header (`kernel_version` in the boot protocol: an offset less 0x200).
pub(crate) fn of_bzimage(image: &[u8]) -> Option<String> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let offset = u16::from_le_bytes(*image.get(0x20e..)?.first_chunk()?);
    word(image.get(usize::from(offset) + 0x200..)?)
}

fn word(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().take(LONGEST + 1).position(|b| matches!(b, b' ' | 0 | b'\n'))?;
    let text = str::from_utf8(&bytes[..end]).ok()?;
    (!text.is_empty() && !text.contains('/')).then(|| text.to_owned())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|b| *b == needle[0]) {
        if haystack[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_is_read() {
        let image = b"..Linux version %s\0..Linux version 6.12.9-x (who@where)..";
        assert_eq!(of_vmlinux(image).as_deref(), Some("6.12.9-x"));
        assert_eq!(of_vmlinux(b"Linux version 6.12"), None, "cut off");
        assert_eq!(of_vmlinux(b""), None);
        assert_eq!(of_vmlinux(b"Linux version 6/../.. "), None, "a release is one path component");
    }
}
