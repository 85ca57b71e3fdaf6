# SPDX-License-Identifier: MIT
# What can be chosen at configure time. A packager who sets nothing gets the library alone when it
# is part of another project, and everything when it is not.

option(COWSNAP_BUILD_TESTS "Build the tests" ${PROJECT_IS_TOP_LEVEL})
option(COWSNAP_BUILD_BENCH "Build the benchmarks" ${PROJECT_IS_TOP_LEVEL})
option(COWSNAP_BUILD_EXAMPLES "Build the examples" ${PROJECT_IS_TOP_LEVEL})
option(COWSNAP_WERROR "Warnings are errors" OFF)
option(COWSNAP_COVERAGE "Count the lines that run (gcov)" OFF)
option(COWSNAP_TSA "Clang's thread-safety analysis, its findings as errors" OFF)
option(COWSNAP_TEST_STANDIN "Compile the tests against the in-process stand-in, not Criterion" OFF)

set(COWSNAP_SANITIZE "" CACHE STRING "Sanitizer: empty, address (with undefined) or thread")
set_property(CACHE COWSNAP_SANITIZE PROPERTY STRINGS "" address thread)
if(NOT COWSNAP_SANITIZE MATCHES "^(address|thread)?$")
	message(FATAL_ERROR "COWSNAP_SANITIZE is '${COWSNAP_SANITIZE}': empty, address or thread")
endif()

# Sanitizers bring their own malloc and do not look at mallocx memory.
if(COWSNAP_SANITIZE)
	set(cowsnap_jemalloc_default OFF)
else()
	find_package(PkgConfig)
	if(PKG_CONFIG_FOUND)
		pkg_check_modules(JEMALLOC QUIET IMPORTED_TARGET jemalloc)
	endif()
	set(cowsnap_jemalloc_default ${JEMALLOC_FOUND})
endif()
option(COWSNAP_WITH_JEMALLOC "Build the component cowsnap-jemalloc" ${cowsnap_jemalloc_default})
if(COWSNAP_WITH_JEMALLOC AND COWSNAP_SANITIZE)
	message(FATAL_ERROR "COWSNAP_WITH_JEMALLOC and COWSNAP_SANITIZE exclude each other")
elseif(COWSNAP_WITH_JEMALLOC AND NOT JEMALLOC_FOUND)
	message(FATAL_ERROR "COWSNAP_WITH_JEMALLOC is on, but pkg-config does not know jemalloc")
endif()

# The io_uring device. Without it cowsnap_device_uring() makes a plain file device.
find_package(PkgConfig)
if(PKG_CONFIG_FOUND)
	pkg_check_modules(URING QUIET IMPORTED_TARGET liburing)
endif()
set(cowsnap_uring_default OFF)
if(URING_FOUND)
	set(cowsnap_uring_default ON)
endif()
option(COWSNAP_WITH_URING "Build the io_uring device (liburing)" ${cowsnap_uring_default})
if(COWSNAP_WITH_URING AND NOT URING_FOUND)
	message(FATAL_ERROR "COWSNAP_WITH_URING is on, but pkg-config does not know liburing")
endif()
