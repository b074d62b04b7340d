//! Batches for fuzz targets: the bytes of one as they come, and records that go through one.

use bytes::Bytes;
use fluvio::dataplane::record::{BATCH_HEADER_SIZE, Batch, RawRecords};

use super::batch::{batches_of, checksum, is_whole, records_of};
use crate::event::UtcMillis;

/// Reads the bytes as a batch with a right checksum, and puts them as records through batches of their own.
///
/// The first byte says how many records the header claims; and into how long records the rest is cut.
pub fn fluvio_value(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    let mut batch = Batch::<RawRecords>::default();
    batch.batch_len = (BATCH_HEADER_SIZE + rest.len()) as i32;
    batch.header.last_offset_delta = i32::from(*first) - 1;
    *batch.mut_records() = RawRecords(Bytes::copy_from_slice(rest));
    if let Ok(crc) = checksum(&batch) {
        batch.header.crc = crc;
    }
    assert!(is_whole(&batch));
    if let Ok(records) = records_of(&batch) {
        assert_eq!(records.len(), usize::from(*first));
        assert!(records.iter().map(Bytes::len).sum::<usize>() <= rest.len());
        for record in &records {
            crate::fuzzing::record(record);
        }
    }
    let length = usize::from(first % 32) + 1;
    let records: Vec<Bytes> = rest.chunks(length).map(Bytes::copy_from_slice).collect();
    let batches = batches_of(records.iter(), 256, UtcMillis::clamped(0));
    let back: Vec<Bytes> = batches
        .into_iter()
        .flat_map(|mut batch| {
            // The checksum is the wire encoder's to write.
            batch.header.crc = checksum(&batch).unwrap_or_default();
            records_of(&batch).unwrap_or_else(|reason| panic!("our own batch does not read: {reason}"))
        })
        .collect();
    assert_eq!(back, records);
}
