//! MQTT without a broker.
