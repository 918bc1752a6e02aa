//! Layers that nobody wrote on purpose.

use super::{
    images::{Images, Made, archive, tar_of},
    *,
};

/// The same sequence in every run (Marsaglia's xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

/// Puts a header's checksum right, so that what was changed is looked at.
fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[test]
fn damaged_layers_are_merged_or_refused_and_what_is_merged_can_be_read() {
    let lower = tar_of(&[
        Made::Folder("a"),
        Made::Attribute("a/file", "content", "value"),
        Made::Hard("a/other", "a/file"),
        Made::Symlink("link", "a"),
        Made::File(&"long/".repeat(40), "x"),
    ]);
    let upper = tar_of(&[
        Made::File("link/through", "1"),
        Made::File("a/.wh.file", ""),
        Made::File("a/.wh..wh..opq", ""),
        Made::Hard("b", "a/other"),
    ]);
    let fixture = Fixture::new();
    let (mut dice, mut merged) = (Dice(0x5eed), 0);
    for round in 0..400 {
        let mut layers = [lower.clone(), upper.clone()];
        for _ in 0..=dice.roll(3) {
            let layer = &mut layers[dice.roll(2)];
            let block = dice.roll(layer.len() / 512) * 512;
            // Mostly what decides: names, sizes, kinds, links.
            let at = match dice.roll(4) {
                0 => dice.roll(100),
                1 => 124 + dice.roll(12),
                2 => 156 + dice.roll(20),
                _ => dice.roll(512),
            };
            layer[block + at] = b"01257xgLK/.\0\xff"[dice.roll(13)];
            seal(&mut layer[block..block + 512]);
        }
        let mut images = Images::default();
        let image = images.image(&layers, "amd64", |_, layer| layer.to_vec());
        let folder = fixture.path().join(format!("layout-{round}"));
        images.layout(&folder, &[image]);
        let Ok(obtained) = fixture.obtain(&format!("oci:{}", folder.display())) else { continue };
        let bytes = content(&obtained);
        let mut tar = tar::Archive::new(&bytes[..]);
        let mut count = 0;
        for entry in tar.entries().unwrap() {
            match entry {
                Ok(_) => count += 1,
                // The library is stricter about what a layer has in fields that nothing here depends on.
                Err(_) => break,
            }
        }
        merged += usize::from(count > 0);
    }
    assert!(merged > 40, "{merged}: most of these are to be looked at, not refused at once");
    assert!(fixture.cached("scratch").is_empty());
}

#[test]
fn files_of_every_length_are_no_image_and_no_panic() {
    let fixture = Fixture::new();
    let whole = archive(&[("oci-layout", b"{}"), ("index.json", b"{}")]);
    for length in (0..whole.len()).step_by(97) {
        fs::write(fixture.path().join("x.tar"), &whole[..length]).unwrap();
        assert!(fixture.obtain("oci:x.tar").is_err());
        // Without being told what it is, a beginning without a header is for the import to judge.
        let _ = fixture.obtain("x.tar");
    }
}
