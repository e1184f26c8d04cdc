//! The ready-made property over model backends: right coordinators hold it, wrong ones and
//! backends that lie are accused.

mod hazards;
mod held;
#[cfg(unix)]
mod streams;
mod toy;
mod wrong;
