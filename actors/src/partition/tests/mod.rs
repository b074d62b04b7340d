//! The stream path end to end: a real log, a real archive, sled, actors; compared with a naive recount.

mod closing;
mod damage;
mod faults;
mod rebuild;
mod restarts;
mod resting;
mod sealing;
mod site;
