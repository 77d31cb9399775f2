//! A broker to connect to.
