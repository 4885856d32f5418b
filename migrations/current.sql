-- Enter migration here

--!include archive/lock_retired.sql
--!include archive/finish_restore.sql
