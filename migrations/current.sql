-- A batch in which all is as usual needs no verdicts.

--!include ingest/ingest.sql

--!include setup/grants.sql
