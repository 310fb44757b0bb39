//! An EFI program that says what it is and can do nothing, for tests.

use crate::release::Release;

/// Of `bytes` bytes, at least 1,000; noise that another `log` would change.
pub fn program(version: &str, log: u32, bytes: usize) -> Vec<u8> {
    let version = version
        .parse()
        .unwrap_or_else(|refused| unreachable!("{refused}"));
    let text = Release { version, log }.text();
    let mut program = vec![0; 0x200];
    let mut put = |at: usize, bytes: &[u8]| {
        let place = program.get_mut(at..at.saturating_add(bytes.len()));
        place.unwrap_or_default().copy_from_slice(bytes);
    };
    put(0, b"MZ");
    put(0x3c, &0x40_u32.to_le_bytes());
    put(0x40, b"PE\0\0");
    put(0x46, &1_u16.to_le_bytes());
    put(0x58, b".osrel\0\0");
    put(
        0x60,
        &u32::try_from(text.len()).unwrap_or_default().to_le_bytes(),
    );
    put(0x6c, &0x200_u32.to_le_bytes());
    program.extend(text.bytes());
    // Noise, so that it does not pack to nothing.
    let mut noise: u32 = log.wrapping_add(1);
    while program.len() < bytes {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        program.extend(noise.to_be_bytes());
    }
    program.truncate(bytes);
    program
}
