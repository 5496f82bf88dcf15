"""How alembic runs our migrations: on the connection that `Store.migrate` hands over, in its transaction."""

from alembic import context

from tunewright.jobs.store import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
