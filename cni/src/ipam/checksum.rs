//! The checksum of leases and of their index.

use crc::{CRC_32_ISO_HDLC, Crc, Table};

/// Computes the CRC-32 (ISO 3309, as in gzip) of `bytes`, continued from `chain`, which is 0 or a
/// result of this function.
pub(in crate::ipam) fn crc32(chain: u32, bytes: &[u8]) -> u32 {
    // A table of 1 KiB. With 16 KiB it would be faster, but the plugin reads a few kilobytes at a
    // time, and its size is limited.
    static CRC_32: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISO_HDLC);
    let mut digest = CRC_32.digest_with_initial((!chain).reverse_bits());
    digest.update(bytes);
    digest.finalize()
}
