//! One header block.

/// Bytes of a block.
pub(super) const BLOCK: usize = 512;

/// What an entry is, by its type flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `0`, a zero byte, or `7`.
    File,
    /// `1`
    HardLink,
    /// `2`
    SymbolicLink,
    /// `3`
    CharacterDevice,
    /// `4`
    BlockDevice,
    /// `5`, and GNU's `D`, which has a list of names as content.
    Directory,
    /// `6`
    Fifo,
    /// GNU's `S`.
    GnuSparse,
    /// `x`: pax records for the next entry. Solaris wrote `X`.
    Extended,
    /// `g`: pax records for all entries that follow.
    Global,
    /// GNU's `L`.
    LongName,
    /// GNU's `K`.
    LongTarget,
    /// GNU's `V`: the archive's name.
    Label,
    /// Something else.
    Other(u8),
}

impl Kind {
    fn of(flag: u8) -> Self {
        match flag {
            b'0' | 0 | b'7' => Self::File,
            b'1' => Self::HardLink,
            b'2' => Self::SymbolicLink,
            b'3' => Self::CharacterDevice,
            b'4' => Self::BlockDevice,
            b'5' | b'D' => Self::Directory,
            b'6' => Self::Fifo,
            b'S' => Self::GnuSparse,
            b'x' | b'X' => Self::Extended,
            b'g' => Self::Global,
            b'L' => Self::LongName,
            b'K' => Self::LongTarget,
            b'V' => Self::Label,
            other => Self::Other(other),
        }
    }

    /// Whether blocks of content follow. Links, devices and fifos have none, whatever their size field says.
    pub(super) fn has_content(self) -> bool {
        !matches!(
            self,
            Self::HardLink
                | Self::SymbolicLink
                | Self::CharacterDevice
                | Self::BlockDevice
                | Self::Directory
                | Self::Fifo
        )
    }
}

/// The fields of a header, as numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) modified: i64,
    pub(super) target: Vec<u8>,
    pub(super) device: (u32, u32),
    /// GNU's old sparse format: the first four pieces, whether more follow in blocks of their own, the file's size.
    pub(super) pieces: Vec<(u64, u64)>,
    pub(super) more_pieces: bool,
    pub(super) real_size: u64,
}

impl Header {
    /// Offsets: POSIX.1-2017, pax, table "ustar Header Block"; GNU tar manual, `struct oldgnu_header`.
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self, &'static str> {
        check_sum(block)?;
        let ustar = &block[257..263] == b"ustar\0";
        let name = string(&block[..100]);
        // GNU's archives have other fields where POSIX has the prefix.
        let prefix = if ustar { string(&block[345..500]) } else { Vec::new() };
        let name = if prefix.is_empty() { name } else { [&prefix[..], b"/", &name].concat() };
        let id = |field, what| u32::try_from(number(field).ok_or(what)?).map_err(|_| what);
        let size = |field| number(field).and_then(|n| u64::try_from(n).ok()).ok_or("a size is not a number");
        let kind = Kind::of(block[156]);
        let mut pieces = Vec::new();
        let sparse = kind == Kind::GnuSparse;
        if sparse {
            for piece in block[386..482].chunks_exact(24).take_while(|piece| piece[0] != 0) {
                pieces.push((size(&piece[..12])?, size(&piece[12..])?));
            }
        }
        Ok(Self {
            name,
            kind,
            // Old tools put the file's type there too; what is not a number has no permission bits that could be kept.
            mode: (number(&block[100..108]).ok_or("a mode is not a number")? & 0o7777) as u32,
            uid: id(&block[108..116], "an owner is not a number")?,
            gid: id(&block[116..124], "a group is not a number")?,
            size: size(&block[124..136])?,
            modified: number(&block[136..148]).ok_or("a time is not a number")?,
            target: string(&block[157..257]),
            // Fields that are often left unset, and matter for devices only.
            device: (id(&block[329..337], "").unwrap_or(0), id(&block[337..345], "").unwrap_or(0)),
            pieces,
            more_pieces: sparse && block[482] != 0,
            real_size: if sparse { size(&block[483..495])? } else { 0 },
        })
    }
}

/// One block of further pieces in GNU's old sparse format: 21 of them, and whether another block follows.
pub(super) fn more_pieces(block: &[u8; BLOCK]) -> Option<(Vec<(u64, u64)>, bool)> {
    let value = |field| u64::try_from(number(field)?).ok();
    let pieces = block[..504].chunks_exact(24).take_while(|piece| piece[0] != 0);
    let pieces = pieces.map(|piece| Some((value(&piece[..12])?, value(&piece[12..])?)));
    Some((pieces.collect::<Option<_>>()?, block[504] != 0))
}

/// Whether a block's checksum says that it is a header.
pub(super) fn is_header(block: &[u8; BLOCK]) -> bool {
    check_sum(block).is_ok()
}

/// The sum of all bytes, those of the sum itself taken as spaces; some old tools summed signed bytes.
fn check_sum(block: &[u8; BLOCK]) -> Result<(), &'static str> {
    let wrong = "expected the header of an entry, and its checksum is wrong";
    let stated = number(&block[148..156]).ok_or(wrong)?;
    let byte = |(index, byte): (usize, &u8)| if (148..156).contains(&index) { b' ' } else { *byte };
    let bytes = || block.iter().enumerate().map(byte);
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|b| i64::from(b as i8)).sum();
    if stated == unsigned || stated == signed { Ok(()) } else { Err(wrong) }
}

/// Octal digits in spaces and zeros; or, where the first bit is set, GNU's base 256, in two's complement.
fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let start = i64::from(first & 0x3f) - if negative { 0x40 } else { 0 };
        return rest.iter().try_fold(start, |n, byte| n.checked_mul(256)?.checked_add(i64::from(*byte)));
    }
    let text = std::str::from_utf8(field).ok()?;
    // What follows a zero byte is not looked at.
    let text = text.trim_start_matches(' ').split('\0').next().unwrap_or_default().trim_matches(' ');
    if text.is_empty() { Some(0) } else { i64::from_str_radix(text, 8).ok() }
}

fn string(field: &[u8]) -> Vec<u8> {
    field.split(|b| *b == 0).next().unwrap_or_default().to_vec()
}

/// What bytes are that are no tar header, for a message.
pub(super) fn hint(block: &[u8]) -> &'static str {
    match block {
        [0x1f, 0x8b, ..] => ": this is gzip, to be unpacked on the way here",
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => ": this is xz, to be unpacked on the way here",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ": this is zstd, to be unpacked on the way here",
        [b'B', b'Z', b'h', ..] => ": this is bzip2, to be unpacked on the way here",
        [b'P', b'K', 3, 4, ..] => ": this is a zip archive",
        [0x7f, b'E', b'L', b'F', ..] => ": this is a program",
        _ => "",
    }
}
