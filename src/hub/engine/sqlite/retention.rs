//! Forgetting: a little with every look, so that no commit waits long for it.

use rusqlite::params;

use super::{Group, schema::ID_BITS};
use crate::hub::engine::{Answer, EngineError};

/// The most rows that one visit deletes of one gateway, and of each other table. At 2 looks a
/// second a lone gateway may send 20,000 records per second before its retention falls behind.
const ROWS_AT_ONCE: i64 = 10_000;

/// How many gateways one look visits.
const VISITS_PER_LOOK: usize = 32;

impl Group<'_> {
    pub(super) fn look(&mut self) -> Result<Answer, EngineError> {
        let expired = self.expire_unsent()?;
        self.forget_old()?;
        Ok(Answer::Seen {
            waiting: self.names(
                "SELECT id FROM gateways WHERE connected = 1 AND no IN (SELECT gateway
                 FROM commands WHERE final = 0 AND (sent_ms IS NULL OR cancel = 1))",
            )?,
            changed: std::mem::take(self.changed),
            expired,
        })
    }

    fn names(&self, sql: &str) -> Result<Vec<String>, EngineError> {
        let mut query = self.tx.prepare_cached(sql)?;
        let names = query.query_map([], |row| row.get(0))?;
        Ok(names.collect::<Result<_, _>>()?)
    }

    fn forget_old(&mut self) -> Result<(), EngineError> {
        let age = i64::try_from(self.options.retention.max_age_ms).unwrap_or(i64::MAX);
        let cutoff = self.now_ms.saturating_sub(age);
        if self.to_visit.is_empty() {
            let mut all = self.tx.prepare_cached("SELECT no FROM gateways")?;
            for no in all.query_map([], |row| row.get(0))? {
                self.to_visit.push_back(no?);
            }
            self.forget_commands(cutoff)?;
        }
        for _ in 0..VISITS_PER_LOOK {
            let Some(gateway) = self.to_visit.pop_front() else { break };
            self.forget_records(gateway, cutoff)?;
            self.forget_gaps(gateway, cutoff)?;
        }
        Ok(())
    }

    fn forget_commands(&self, cutoff: i64) -> Result<(), EngineError> {
        for sql in [
            "DELETE FROM command_statuses WHERE command IN (SELECT id FROM commands
             WHERE final = 1 AND created_ms < ?1 LIMIT ?2)",
            "DELETE FROM commands WHERE id IN (SELECT id FROM commands WHERE final = 1
             AND created_ms < ?1 LIMIT ?2)",
        ] {
            self.tx.prepare_cached(sql)?.execute(params![cutoff, ROWS_AT_ONCE])?;
        }
        Ok(())
    }

    fn forget_records(&self, gateway: i64, cutoff: i64) -> Result<(), EngineError> {
        let (first, next): (i64, i64) = self
            .tx
            .prepare_cached("SELECT first_record, next_record FROM gateways WHERE no = ?1")?
            .query_row([gateway], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if first >= next {
            return Ok(());
        }
        let base = gateway << ID_BITS;
        let most = i64::try_from(self.options.retention.max_records_per_gateway);
        let by_count = next.saturating_sub(most.unwrap_or(i64::MAX));
        let at_once = next.min(first.saturating_add(ROWS_AT_ONCE));
        // Records are in the order of their arrival: the first young one ends the old ones.
        let young: Option<i64> = self
            .tx
            .prepare_cached(
                "SELECT min(key) FROM (SELECT key FROM records WHERE key >= ?1 AND key < ?2
                 AND received_ms >= ?3 ORDER BY key LIMIT 1)",
            )?
            .query_row(params![base | first, base | at_once, cutoff], |row| row.get(0))?;
        let by_age = young.map_or(at_once, |key| key - base);
        let keep_from = by_count.max(by_age).min(at_once);
        if keep_from <= first {
            return Ok(());
        }
        self.tx
            .prepare_cached("DELETE FROM records WHERE key >= ?1 AND key < ?2")?
            .execute([base | first, base | keep_from])?;
        self.tx
            .prepare_cached("UPDATE gateways SET first_record = ?2 WHERE no = ?1")?
            .execute([gateway, keep_from])?;
        Ok(())
    }

    fn forget_gaps(&self, gateway: i64, cutoff: i64) -> Result<(), EngineError> {
        let most = i64::try_from(self.options.retention.max_gaps_per_gateway);
        self.tx
            .prepare_cached(
                "DELETE FROM gaps WHERE gateway = ?1 AND (at_ms < ?2 OR id <= (SELECT id FROM gaps
                 WHERE gateway = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?3))",
            )?
            .execute(params![gateway, cutoff, most.unwrap_or(i64::MAX)])?;
        Ok(())
    }
}
