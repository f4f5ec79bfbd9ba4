//! Other people's programs, started on hosts of the lab.
