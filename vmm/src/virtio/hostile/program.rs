//! Bytes as a program: whatever they are, they mean something.

/// A byte string that is read from the front. Past its end it reads as zeros.
#[derive(Debug)]
pub(super) struct Program<'a> {
    bytes: &'a [u8],
}

/// Numbers at which lengths, counts and registers change their meaning.
const NUMBERS: [u32; 24] = [
    0,
    1,
    2,
    3,
    15,
    16,
    17,
    44,
    45,
    255,
    256,
    511,
    512,
    513,
    4095,
    4096,
    4097,
    0x1_0000,
    0x2_0000,
    0x2_0001,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fff0,
    0xffff_ffff,
];

impl<'a> Program<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(super) fn is_over(&self) -> bool {
        self.bytes.is_empty()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let given = self.bytes(N);
        array[..given.len()].copy_from_slice(given);
        array
    }

    /// The next `count` bytes, or as many as there are.
    pub(super) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (front, rest) = self.bytes.split_at(count.min(self.bytes.len()));
        self.bytes = rest;
        front
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(super) fn word(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(super) fn long(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(super) fn quad(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number below `end`, which is at most 256 and not 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end.max(1)
    }

    /// One of these.
    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// True about once in `n` times.
    pub(super) fn once_in(&mut self, n: u8) -> bool {
        self.byte() % n == n - 1
    }

    /// Any number, most often one that is interesting.
    pub(super) fn number(&mut self) -> u32 {
        match self.byte() {
            at @ 0..=191 => NUMBERS[usize::from(at) % NUMBERS.len()],
            at @ 192..=239 => u32::from(at - 192),
            _ => self.long(),
        }
    }
}
