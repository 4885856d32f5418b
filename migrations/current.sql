-- A batch in which every heartbeat is stored needs no verdicts.

--!include ingest/quarantine.sql
--!include ingest/record_others.sql
--!include ingest/ingest_batch.sql
--!include ingest/ingest.sql

--!include setup/grants.sql
