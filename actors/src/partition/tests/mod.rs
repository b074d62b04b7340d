//! The stream path end to end: a real log, a real archive, sled, actors; compared with a naive recount.

mod faults;
mod restarts;
mod sealing;
mod site;
