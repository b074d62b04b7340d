//! The S3 server of the tests. (Being written.)

fn main() {}
